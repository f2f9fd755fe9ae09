"""The run directory: the experiment, its metrics and results, and the state to continue from.

=====================  ====================================================================
``config.json``        the experiment, versions, commit, data digest; written once
``metrics.jsonl``      one line per logged meta-step and per validation
``last.safetensors``   weights, optimiser, random state: what ``--resume`` continues from
``best.safetensors``   the weights with the best validation accuracy
``result.json``        the final score, with its interval and protocol
=====================  ====================================================================
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import filelock

from metagrad import strict_json
from metagrad.data import Progress
from metagrad.distributed import ALONE, Ranks
from metagrad.errors import MetagradError
from metagrad.experiment import extend_budget, format1, metrics_file, run_files
from metagrad.experiment.adapt import Adapted, adapt
from metagrad.experiment.check import check_run
from metagrad.experiment.checkpoint import State
from metagrad.experiment.episodes import Episodes, episodes_of
from metagrad.experiment.experiment import Experiment
from metagrad.experiment.measure import measure
from metagrad.experiment.record import Record, new_record, read_record, trained_as
from metagrad.experiment.setup import open_sources
from metagrad.experiment.sources import Sources
from metagrad.experiment.storage import APPENDED, require_own, require_unused, storage_error
from metagrad.files import remove_leftovers, require_text, sync_folder
from metagrad.named_code import name_of
from metagrad.seeds import Seeds


class Run:
    """A run directory held by this process alone, as a context manager; of several ranks, only the first writes."""

    def __init__(self, folder: Path, record: Record) -> None:
        self.folder, self.record = folder, record.written
        self.experiment, self.data = record.experiment, record.data
        self.writes = True
        self._lock = filelock.FileLock(folder / ".lock")

    @classmethod
    def create(
        cls,
        folder: Path,
        experiment: Experiment,
        sources: Sources,
        *,
        command: Sequence[str] = (),
        launch: str | None = None,
        init: str | None = None,
    ) -> Run:
        """Make a new run directory.

        Parameters
        ----------
        sources:
            the experiment's opened tasks; the run records their data.
        command:
            the command line, word by word.
        launch:
            name of the ``torchrun`` launch that makes the run (:meth:`made_by`).
        init:
            where the initial weights come from.

        Raises
        ------
        MetagradError
            if ``folder`` exists and is not empty, or cannot be made; if the experiment cannot be written as JSON.
        """
        folder = Path(folder)
        require_text(folder, *command)
        record = new_record(experiment, sources, command=command, launch=launch, init=init)
        run = cls(folder, Record(record, experiment, record["data"]))
        try:
            if folder.exists() and not folder.is_dir():
                raise MetagradError(f"{folder} is a file: choose another --run")
            folder.mkdir(parents=True, exist_ok=True)
            require_unused(folder)  # before it is locked: a folder that is refused stays as it was
            with run:  # two processes may have chosen the same folder: the second must find it taken
                require_unused(folder)
                run.write_json("config.json", record)
            sync_folder(folder.parent)
        except OSError as error:
            raise storage_error(folder, error) from error
        return run

    @classmethod
    def open(cls, folder: str | Path, *, code: Collection[str] = (), experiment: Experiment | None = None) -> Run:
        """Open an existing run directory.

        Parameters
        ----------
        code:
            import paths outside of metagrad, ``"package.module:name"``, that the run may import; it imports no others.
        experiment:
            the run's own experiment, if you have it: the run then imports nothing, and ``code`` is not needed.

        Raises
        ------
        MetagradError
            if the folder is no run, is damaged, was written by an incompatible version, names code that is not in
            ``code``, or holds another experiment.
        """
        return cls(Path(folder), read_record(Path(folder), code=code, given=experiment))

    @property
    def dataset(self) -> str | None:
        """The name of the data set that the tasks come from, if there is one."""
        episodes = self.episodes
        return None if episodes is None else episodes.dataset

    @property
    def episodes(self) -> Episodes | None:
        """How the run draws tasks from a data set, or ``None`` if they come from elsewhere."""
        return episodes_of(self.experiment.tasks)

    @property
    def inputs(self) -> tuple[int, ...]:
        """The shape of an example's input."""
        return tuple(self.data["inputs"])

    @property
    def outputs(self) -> int:
        """How many numbers the network returns for an example."""
        return int(self.data["outputs"])

    @property
    def method_name(self) -> str:
        """The short name of the method."""
        return name_of(self.experiment.method)

    @staticmethod
    def made_by(launch: str | None, where: Path) -> Path | None:
        """Return the run directory, ``where`` itself or in it, that a ``torchrun`` launch made before it restarted."""
        for path in [where / "config.json", *where.glob("*/config.json")]:
            try:
                if launch is not None and strict_json.read(path).get("launch") == launch:
                    return path.parent
            except (OSError, ValueError, AttributeError):
                continue
        return None

    def open_tasks(
        self, *, data_dir: str | Path | None = None, device: str | None = None, progress: Progress | None = None
    ) -> Sources:
        """Open the tasks that the run was made with.

        Raises
        ------
        MetagradError
            if the data are missing, or differ from those that the run began with.
        """
        return open_sources(self, data_dir=data_dir, device=device, progress=progress)

    def evaluate(
        self,
        *,
        split: str = "test",
        tasks: int = 600,
        ways: int | None = None,
        shots: int | None = None,
        queries: int | None = None,
        turned: bool = False,
        disjoint: bool = False,
        seed: int = 0,
        transductive: bool = True,
        data_dir: str | Path | None = None,
        device: str | None = None,
    ) -> dict[str, Any]:
        """Return the score of the best weights on tasks drawn with ``seed``, with its interval and protocol.

        With the run's own seed (:attr:`test_seed`) these are the test tasks that ``result.json`` is of.

        Parameters and errors as of :func:`metagrad.experiment.measure.measure`.
        """
        sources = self.open_tasks(data_dir=data_dir, device=device)
        return measure(
            self,
            sources,
            split=split,
            tasks=tasks,
            ways=ways,
            shots=shots,
            queries=queries,
            turned=turned,
            disjoint=disjoint,
            seed=seed,
            transductive=transductive,
        )

    def check(
        self, *, tasks: int = 4, seed: int = 0, data_dir: str | Path | None = None, device: str | None = None
    ) -> dict[str, Any]:
        """Compare the meta-gradient of a few tasks with an accurate one, at the weights of the last checkpoint.

        Parameters and errors as of :func:`metagrad.experiment.check.check_run`.
        """
        return check_run(self, self.open_tasks(data_dir=data_dir, device=device), tasks=tasks, seed=seed)

    def adapt(self, support: Any) -> Adapted:
        """Adapt the best weights to tasks of your own.

        Parameters
        ----------
        support:
            :class:`~metagrad.fewshot.Batch`, or ``(x, y)``, with a task axis: ``x`` is ``(T, N, ...)``.

        Returns
        -------
        Adapted
            whose ``predict`` takes inputs ``(T, M, ...)``.

        Raises
        ------
        MetagradError
            if the run has no best weights yet.
        """
        return adapt(self, support)

    def __enter__(self) -> Run:
        if not self.writes:
            return self
        for name in APPENDED:
            require_own(self.folder / name)
        try:
            self._lock.acquire(timeout=0)
            remove_leftovers(self.folder)
        except filelock.Timeout as error:
            raise MetagradError(f"another process is working in {self.folder}: wait for it or stop it") from error
        except OSError as error:
            raise storage_error(self.folder / ".lock", error) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @property
    def seeds(self) -> Seeds:
        """The streams of random numbers, by the rule that the run began with."""
        return Seeds(self.experiment.seed, self.record.get("streams", 1))

    @property
    def test_seed(self) -> int:
        """The seed of the test tasks: what ``metagrad evaluate --seed`` takes to draw them again."""
        return self.seeds.of("test") if self.seeds.rule == 1 else self.experiment.seed

    @property
    def metrics_path(self) -> Path:
        """Where the metrics lines are."""
        return self.folder / "metrics.jsonl"

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Append one line of JSON to a file of the run, without the numbers that are not finite."""
        if self.writes:
            run_files.append(self.folder / name, line)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the logged lines; see :func:`metagrad.experiment.metrics_file.lines_of`."""
        return metrics_file.lines_of(self.metrics_path)

    def metrics_fault(self, state: State) -> str | None:
        """Return what is wrong with ``metrics.jsonl`` up to a checkpoint, or ``None``."""
        return metrics_file.fault(self.metrics_path, state.facts)

    def save(self, name: str, state: State, *, logged: int | None = None) -> None:
        """Write a checkpoint (``"last"`` or ``"best"``) in one step; the former one stays until it is complete.

        ``logged``: how many bytes of ``metrics.jsonl`` belong to the state; ``None``: all.
        """
        if self.writes:
            facts = {"trained_as": self._trained_as(), "run": self.record.get("run")}
            run_files.write_state(self.folder, name, state, facts, logged)

    def has(self, name: str) -> bool:
        """Whether there is a checkpoint called ``name``; a broken link counts, and :meth:`load` refuses it."""
        return os.path.lexists(self.folder / f"{name}.safetensors")

    def load(self, name: str, ranks: Ranks = ALONE) -> State:
        """Read a checkpoint; of several ranks, the first reads it and sends it to the others.

        :func:`metagrad.experiment.setup.learned` also checks that its weights fit the network.

        Raises
        ------
        MetagradError
            if there is none, or it is damaged, altered, or of another run or configuration.
        """
        state: State | MetagradError | None = None
        if ranks.first:
            try:
                state = run_files.read_state(self.folder, self.record, self._trained_as(), name)
            except MetagradError as error:
                state = error
        loaded: State = ranks.from_first(state)
        return loaded

    def _trained_as(self) -> dict[str, Any]:
        """Return the options that a checkpoint depends on; the number of meta-steps is none of them."""
        flat = self.record["format"] == 1
        return format1.trained_as(self.record) if flat else trained_as(self.experiment.as_json())

    def raise_meta_steps(self, steps: int) -> None:
        """Give the run more meta-steps, as :func:`metagrad.experiment.extend_budget.raise_meta_steps`."""
        extend_budget.raise_meta_steps(self, steps)

    def rewind(self, state: State | None) -> None:
        """Drop the metrics lines that are later than the checkpoint: the run computes them again.

        Warns if earlier lines are missing or altered; training does not need them. A run without a checkpoint
        (``None``) begins again.
        """
        if self.writes:
            run_files.rewind(self.folder, state, begun=self.has("best"))

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON file of the run in one step, with a digest of its content.

        Raises
        ------
        MetagradError
            if it cannot be written, or would hold a number that is not finite.
        """
        if self.writes:
            run_files.write_json(self.folder / name, value)

    def write_measured(self, name: str, value: dict[str, Any], weights: str | None) -> None:
        """Write a measurement of the weights with this digest, with the name of the run."""
        self.write_json(name, {**value, "run": self.record.get("run"), "weights": weights})

    def read_measured(self, name: str, weights: str | None) -> dict[str, Any] | None:
        """Return a measurement of the run's weights; ``None`` if there is none, or it is of earlier weights.

        Parameters
        ----------
        weights:
            digest of the checkpoint in use.

        Raises
        ------
        MetagradError
            if the file is damaged, altered or another run's.
        """
        return run_files.read_measured(self.folder / name, self.record, weights)
