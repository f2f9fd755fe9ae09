"""``metagrad train``."""

from __future__ import annotations

import dataclasses
import datetime
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from metagrad.cli import allocator
from metagrad.errors import MetagradError
from metagrad.training.config import TrainConfig

# Where the default is None, the help text says what that means.
_DATASET = tyro.conf.arg(metavar="DATASET", help_behavior_hint="")
_RUN = tyro.conf.arg(metavar="DIR", help_behavior_hint="", aliases=("--run-dir",))
_DIR = tyro.conf.arg(metavar="DIR", help_behavior_hint="")

if TYPE_CHECKING:
    from rich.console import Console

    from metagrad.data import Dataset
    from metagrad.ranks import Ranks
    from metagrad.training.loop import Event
    from metagrad.training.run import Run


@dataclass(frozen=True)
class Train:
    """Meta-train a network, test it on classes it has never seen, keep everything in a run directory."""

    dataset: Annotated[tyro.conf.Positional[Literal["glyphs", "omniglot"] | None], _DATASET] = None
    """glyphs (letters of many scripts, nothing to download) or omniglot (handwriting)."""
    run: Annotated[Path | None, _RUN] = None
    """New directory for the run. Default: a new one under runs/, named by data set, method and time.
    Under torchrun write --run-dir: torchrun takes --run for its own."""
    resume: Annotated[Path | None, _DIR] = None
    """Continue this run, bit for bit, with the options it has; only --meta-steps may be raised with it."""
    data_dir: Annotated[Path | None, _DIR] = None
    """Folder with the data set's original files. Default: METAGRAD_DATA, else they are downloaded."""
    tensorboard: bool = False
    """Also write TensorBoard scalars into DIR/tensorboard (needs metagrad[tensorboard])."""
    config: tyro.conf.OmitArgPrefixes[TrainConfig] = field(default_factory=TrainConfig)

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        if self.resume is not None:
            self._check_resume()
        elif self.dataset is None:
            raise MetagradError("name a data set: metagrad train glyphs, or metagrad train omniglot")
        else:  # impossible values are named before torch and the data are loaded
            self.config.resolved(self.dataset)
        allocator.keep_memory()
        from metagrad.cli.progress import TrainProgress, console, data_progress
        from metagrad.ranks import joined
        from metagrad.training.loop import train

        writer = _tensorboard() if self.tensorboard else None
        with joined() as ranks:
            screen = console(quiet=not ranks.first)
            run, dataset, resume = self._prepare(ranks, words, data_progress(screen))
            with run:
                if resume:
                    self._raise_meta_steps(run)
                first = run.load("last", ranks).facts["step"] if ranks.from_first(run.has("last")) else 0
                screen.print(f"run directory: {run.folder}", highlight=False, soft_wrap=True)
                steps = run.config.meta_steps
                assert steps is not None
                with (
                    _Interrupt(quiet=not ranks.first) as stop,
                    TrainProgress(screen, first_step=first, meta_steps=steps) as progress,
                ):
                    report: Callable[[Event], None] = progress
                    if writer and ranks.first:
                        report = _also(progress, writer(str(run.folder / "tensorboard")))
                    outcome = train(run, dataset, resume=resume, report=report, stop=stop, ranks=ranks)
        if outcome.result is None:
            screen.print(
                f"stopped and saved after meta-step {outcome.step}; continue with\n"
                f"  metagrad train --resume {run.folder}",
                highlight=False,
                soft_wrap=True,
            )
            return 130
        show_result(screen, outcome.result)
        screen.print(f"everything is in {run.folder}", highlight=False, soft_wrap=True)
        return 0

    def _prepare(self, ranks: Ranks, words: list[str], progress: Any) -> tuple[Run, Dataset, bool]:
        """Load the data and open or make the run; of several ranks, the first does it before the others."""
        from metagrad.training.run import Run, versions

        opened: tuple[Run, Dataset, bool] | MetagradError | None = None
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
            opened = self._follow(Run.open(folder), resume, progress)
            opened[0].writes = False
        run, dataset, _ = opened
        mine = run.config if resume else self.config.resolved(run.dataset)
        ranks.require_same({**dataclasses.asdict(mine), "data": dataset.digest, "torch": versions()["torch"]})
        return opened

    def _open(self, words: list[str], progress: Any) -> tuple[Run, Dataset, bool]:
        from metagrad import data
        from metagrad.ranks import launch_id, restarted
        from metagrad.training.run import Run
        from metagrad.training.setup import choose_device, samplers

        resume = self.resume
        if restarted():  # a rank died and torchrun began again: the run it made is the one to continue
            resume = resume or Run.made_by(launch_id(), self.run or Path("runs"))
        if resume is not None:
            run = Run.open(resume)
            return self._follow(run, True, progress)
        name = str(self.dataset)
        dataset = data.load(name, data_dir=self.data_dir, progress=progress)
        config = self.config.resolved(name)
        samplers(config, dataset, choose_device(config.device))  # refuses before a directory is made
        folder = self.run or _default_folder(name, config)
        run = Run.create(folder, name, config, command=["metagrad", *words], digest=dataset.digest, launch=launch_id())
        return run, dataset, False

    def _follow(self, run: Run, resume: bool, progress: Any) -> tuple[Run, Dataset, bool]:
        """Load the data of a run that is there already."""
        from metagrad import data

        dataset = data.load(run.dataset, data_dir=self.data_dir, progress=progress)
        if dataset.digest != run.record["data_digest"]:
            raise MetagradError(
                f"the {run.dataset} data differ from those {run.folder} began with: pass the same --data-dir"
            )
        return run, dataset, resume

    def _check_resume(self) -> None:
        changed = [
            f.name
            for f in dataclasses.fields(TrainConfig)
            if f.name != "meta_steps" and getattr(self.config, f.name) != f.default
        ]
        if self.dataset is not None or self.run is not None or changed:
            given = self.dataset or ("--run" if self.run else f"--{changed[0].replace('_', '-')}")
            raise MetagradError(f"--resume takes everything from the run: leave out {given}")

    def _raise_meta_steps(self, run: Run) -> None:
        wanted, had = self.config.meta_steps, run.config.meta_steps
        if wanted is None or had is None or wanted == had:
            return
        if wanted < had:
            raise MetagradError(f"--meta-steps {wanted} is fewer than the run's {had}: it can only be raised")
        run.config = dataclasses.replace(run.config, meta_steps=wanted)
        run.record["config"] = dataclasses.asdict(run.config)
        run.write_json("config.json", run.record)


class _Interrupt:
    """Ctrl-C asks the loop to save and stop; a second one stops at once."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet

    def __enter__(self) -> Callable[[], bool]:
        self._asked = False
        self._former = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return lambda: self._asked

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        if not self._quiet:
            print("saving after this meta-step; once more stops at once", file=sys.stderr)


def _default_folder(dataset: str, config: TrainConfig) -> Path:
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{dataset}-{config.method}-{config.ways}way-{config.shots}shot-{now}"
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
        raise MetagradError("--tensorboard needs it installed: pip install 'metagrad[tensorboard]'") from error
    return SummaryWriter


def _also(report: Callable[[Event], None], writer: Any) -> Callable[[Event], None]:
    """Report an event and write its numbers for TensorBoard."""

    def both(event: Event) -> None:
        report(event)
        for name, value in event.line.items():
            if name not in ("step", "tested", "of"):
                writer.add_scalar(name, value, event.step)
        writer.flush()

    return both


def show_result(screen: Console, result: dict[str, Any]) -> None:
    """Print a result with its interval and protocol, in one line."""
    protocol = result["protocol"]
    way = "transductive" if protocol["transductive"] else "not transductive"
    screen.print(
        f"{result['metric'].replace('_', ' ')} {result['value']:.2%} ± {result['ci95']:.2%}  "
        f"({protocol['dataset']} {protocol['split']}, {protocol['ways']}-way {protocol['shots']}-shot, "
        f"{protocol['queries']} queries a class, {protocol['tasks']} tasks, {way})",
        highlight=False,
        soft_wrap=True,
    )
