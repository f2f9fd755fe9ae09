"""The run directory: what was asked, what happened, and the state to go on from.

=====================  ====================================================================
``config.json``        options, versions, commit, data digest; written once
``metrics.jsonl``      one line per logged meta-step and per validation
``last.safetensors``   weights, optimiser, random state: what ``--resume`` continues from
``best.safetensors``   the weights with the best validation accuracy
``result.json``        the figure at the end, with its interval and protocol
=====================  ====================================================================
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock

from metagrad import strict_json, tensorfile
from metagrad.data import Progress
from metagrad.data.reading import Reading
from metagrad.distributed import ALONE, Ranks
from metagrad.errors import MetagradError
from metagrad.experiment import format1, metrics_file, run_files
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
from metagrad.files import (
    append_line,
    remove_leftovers,
    require_text,
    sync_file,
    sync_folder,
    write_text,
)
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
            the experiment's tasks, opened: what is known of the data is recorded.
        command:
            the words that were typed.
        launch:
            names the ``torchrun`` launch that makes it (:meth:`made_by`).
        init:
            where the weights that it begins at come from.

        Raises
        ------
        MetagradError
            if ``folder`` exists and is not empty, or cannot be made; if the experiment cannot be written down.
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
            import paths outside of metagrad, ``"package.module:name"``, that the run may name: no others are imported.
        experiment:
            the run's own, where who opens it has it at hand; then nothing has to be named.

        Raises
        ------
        MetagradError
            if it is not a run, is damaged, was written by an incompatible version, names code that is not allowed, or
            is of another experiment.
        """
        return cls(Path(folder), read_record(Path(folder), code=code, given=experiment))

    @property
    def dataset(self) -> str | None:
        """The name of the data set that its tasks are drawn from, if there is one."""
        episodes = self.episodes
        return None if episodes is None else episodes.dataset

    @property
    def episodes(self) -> Episodes | None:
        """How tasks are drawn from a data set, if they are."""
        return episodes_of(self.experiment.tasks)

    @property
    def inputs(self) -> tuple[int, ...]:
        """The shape of an example's input."""
        if "inputs" in self.data:
            return tuple(self.data["inputs"])
        assert self.episodes is not None  # of format 1
        reading = Reading.of(self.episodes.dataset, self.episodes.image_size)
        return reading.channels, reading.size, reading.size

    @property
    def outputs(self) -> int:
        """How many numbers the network returns for an example."""
        return int(self.data["outputs"])

    @property
    def method_name(self) -> str:
        """What the method is called in short."""
        return str(getattr(self.experiment.method, "name", type(self.experiment.method).__name__))

    def require_data(self, sources: Sources, where: object = None) -> None:
        """Refuse tasks of other data than the run began with.

        Raises
        ------
        MetagradError
            saying what to do.
        """
        if sources.digest != self.data["digest"]:
            raise MetagradError(
                f"the {self.dataset} data{f' in {where}' if where else ''} differ from those {self.folder} began with: "
                "restore the files as they were, pass another --data-dir, or begin a new run"
            )

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
            if its data are not there, or are others.
        """
        where = None if data_dir is None else Path(data_dir)
        return open_sources(self, data_dir=where, device=device, progress=progress)

    def evaluate(
        self,
        *,
        split: str = "test",
        tasks: int = 600,
        queries: int | None = None,
        seed: int = 0,
        transductive: bool = True,
        data_dir: str | Path | None = None,
        device: str | None = None,
    ) -> dict[str, Any]:
        """Return the score of the best weights on new tasks, with its interval and protocol.

        Parameters and errors as of :func:`metagrad.experiment.measure.measure`.
        """
        sources = self.open_tasks(data_dir=data_dir, device=device)
        return measure(self, sources, split=split, tasks=tasks, queries=queries, seed=seed, transductive=transductive)

    def check(
        self, *, tasks: int = 4, seed: int = 0, data_dir: str | Path | None = None, device: str | None = None
    ) -> dict[str, Any]:
        """Compare the meta-gradient of a few tasks with an accurate one, at the weights that were reached last.

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
        """Append one line of JSON to a file of the run; numbers that are not finite are left out."""
        if not self.writes:
            return
        path = self.folder / name
        require_own(path)
        finite = {key: value for key, value in line.items() if not isinstance(value, float) or math.isfinite(value)}
        try:
            append_line(path, strict_json.dump(finite))
        except OSError as error:
            raise storage_error(path, error) from error

    def metrics(self) -> list[dict[str, Any]]:
        """Return the logged lines; see :func:`metagrad.experiment.metrics_file.lines_of`."""
        return metrics_file.lines_of(self.metrics_path)

    def metrics_fault(self, state: State) -> str | None:
        """Say what is wrong with ``metrics.jsonl`` up to a checkpoint, if anything is."""
        return metrics_file.fault(self.metrics_path, state.facts)

    def save(self, name: str, state: State, *, logged: int | None = None) -> None:
        """Write a checkpoint (``"last"`` or ``"best"``) in one step; the former one stays until it is complete.

        ``logged``: bytes of ``metrics.jsonl`` that belong to the state; ``None``: all.
        """
        if not self.writes:
            return
        path = self.folder / f"{name}.safetensors"
        try:
            lines = metrics_file.facts_of(self.metrics_path, logged)
        except OSError as error:
            raise storage_error(self.metrics_path, error) from error
        facts = {**state.facts, **lines, "trained_as": self._trained_as(), "run": self.record.get("run")}
        tensorfile.write(
            path,
            state.tensors,
            facts,
            key="facts",
            refused=lambda error: storage_error(path, error),
            first=lambda: sync_file(self.metrics_path),  # a power cut must not leave the checkpoint without its lines
        )

    def has(self, name: str) -> bool:
        """Whether there is a checkpoint called ``name``; a link that leads nowhere is one that cannot be read."""
        return os.path.lexists(self.folder / f"{name}.safetensors")

    def load(self, name: str, ranks: Ranks = ALONE) -> State:
        """Read a checkpoint; of several ranks, the first reads and tells the others.

        Whether its weights fit a network is for :func:`metagrad.experiment.setup.learned` to say.

        Raises
        ------
        MetagradError
            if there is none, it is damaged or altered, or it belongs to another run or configuration.
        """
        state: State | MetagradError | None = None
        if ranks.first:
            try:
                state = run_files.read_state(self.folder, self.record, self._trained_as(), name)
            except MetagradError as error:
                state = error
        found = ranks.from_first(state)
        assert isinstance(found, State)
        return found

    def _trained_as(self) -> dict[str, Any]:
        """Return what a checkpoint depends on; the number of meta-steps may be raised later."""
        if self.record["format"] == 1:
            return format1.trained_as(self.record)
        return trained_as(self.experiment.as_json())

    def raise_meta_steps(self, steps: int) -> None:
        """Let the run go on for longer.

        Raises
        ------
        MetagradError
            for fewer steps than it has.
        """
        had = self.experiment.meta_steps
        if steps < had:
            raise MetagradError(f"--meta-steps {steps} is fewer than the run's {had}: it can only be raised")
        if steps == had:
            return
        self.experiment = replace(self.experiment, budget=replace(self.experiment.budget, meta_steps=steps))
        if self.record["format"] == 1:
            self.record["config"]["meta_steps"] = steps
        else:
            self.record["experiment"]["budget"]["meta_steps"] = steps
        self.write_json("config.json", self.record)

    def rewind(self, state: State | None) -> None:
        """Drop metrics lines that are later than the checkpoint: they will be computed again.

        What is missing of the earlier ones, or was written by something else, is said; training does not need them. A
        run without a checkpoint (``None``) begins again.
        """
        if not self.writes:
            return
        run_files.rewind(self.folder, state, begun=self.has("best"))

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON file of the run in one step, with a digest of what is in it.

        Raises
        ------
        MetagradError
            if it cannot be written, or would hold a number that is not finite.
        """
        if not self.writes:
            return
        path = self.folder / name
        try:
            text = strict_json.dump(strict_json.signed(value), indent=2) + "\n"
        except ValueError as error:
            raise MetagradError(
                f"{path} would hold a number that is not finite: the weights are no use, begin anew with a smaller "
                "--outer-lr or --inner-lr"
            ) from error
        write_text(path, text, refused=lambda error: storage_error(path, error))

    def write_measured(self, name: str, value: dict[str, Any], weights: str | None) -> None:
        """Write what was measured on the weights of this digest, with the name of the run."""
        self.write_json(name, {**value, "run": self.record.get("run"), "weights": weights})

    def read_measured(self, name: str, weights: str | None) -> dict[str, Any] | None:
        """Return what was measured on the run's weights, ``None`` where nothing is or it was on earlier ones.

        Parameters
        ----------
        weights:
            digest of the checkpoint that is in use.

        Raises
        ------
        MetagradError
            if the file is damaged, altered or another run's.
        """
        return run_files.read_measured(self.folder, self.record, name, weights)
