"""``metagrad evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from metagrad import allocator
from metagrad.cli.arguments import arg
from metagrad.errors import MetagradError

if TYPE_CHECKING:
    from metagrad.cli.progress import Screen
    from metagrad.distributed import Ranks


@dataclass(frozen=True)
class Evaluate:
    """Measure a run's accuracy on new tasks, with a 95 % interval; compare several runs on the same tasks.

    Every task's accuracy goes into evaluations.jsonl of the run.
    """

    runs: tuple[Path, ...] = arg(positional=True, metavar="RUN")
    """Directory of a run. If you give several, each is compared with the first, task by task."""
    split: Literal["test", "val"] = "test"
    """Classes to draw from: test, never used to train or to choose weights, or val, used to choose weights."""
    tasks: int = arg(600, least=2)
    """Number of tasks; the interval narrows with its square root."""
    ways: int | None = arg(None, least=2)
    """Classes a task. Default: as in the run's own test."""
    shots: int | None = arg(None, least=1)
    """Support images of each class. Default: as in the run's own test."""
    queries: int | None = arg(None, least=1)
    """Query images of each class. Default: as in the run's own test."""
    turned: bool = False
    """Turn each class of a task by a random multiple of 90 degrees, as some published protocols do."""
    disjoint: bool = False
    """Draw tasks that share no image: as many as possible, at most --tasks. The interval then also covers the choice of
    images; with tasks that may share images it does not."""
    transductive: bool = True
    """Classify all query images of a task together, as the papers do: batch norms then use the statistics of all
    of them. --no-transductive classifies each image by itself."""
    seed: int = arg(0, least=0, most=2**62 - 1)
    """Seed of the tasks."""
    device: str | None = None
    """Where to compute. Default: as in training."""
    data_dir: Path | None = arg(None, metavar="DIR")
    """Folder with the data set's original files. Default: METAGRAD_DATA, else they are downloaded."""
    code: tuple[str, ...] = arg((), metavar="CODE", repeated=True)
    """Allow the import of your own code that the run names, as package.module:name. Give it once for each name."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        if not self.runs:
            raise MetagradError("metagrad evaluate needs RUN; see metagrad evaluate --help")
        allocator.keep_memory()
        from metagrad.cli.progress import Screen
        from metagrad.distributed import joined
        from metagrad.experiment.run import Run

        with joined() as ranks:
            screen = Screen(quiet=not ranks.first)
            opened = [Run.open(folder, code=self.code) for folder in self.runs]
            _require_alike(opened, self)
            results = [self._measured(screen, run, ranks, words) for run in opened]
            for folder, result in zip(self.runs[1:], results[1:], strict=True):
                screen.write_line(_difference(folder, result, self.runs[0], results[0]))
        return 0

    def _measured(self, screen: Screen, run: Any, ranks: Ranks, words: list[str]) -> dict[str, Any]:
        from metagrad.cli.after_training import show_result
        from metagrad.cli.progress import WorkProgress, data_progress
        from metagrad.experiment.measure import measure
        from metagrad.experiment.setup import open_sources

        sources = open_sources(run, data_dir=self.data_dir, device=self.device, progress=data_progress(screen))
        ranks.require_same({"data": sources.digest, "--tasks": self.tasks, "--seed": self.seed})
        name = f"{run.folder}: " if len(self.runs) > 1 else ""
        with WorkProgress(screen, f"{name}evaluating") as progress:
            result = measure(
                run,
                sources,
                split=self.split,
                tasks=self.tasks,
                ways=self.ways,
                shots=self.shots,
                queries=self.queries,
                turned=self.turned,
                disjoint=self.disjoint,
                seed=self.seed,
                transductive=self.transductive,
                progress=progress,
                ranks=ranks,
            )
        show_result(screen, result, name)  # before it is written: a read-only run can be measured too
        if ranks.first:
            run.append("evaluations.jsonl", {**result, "command": ["metagrad", *words]})
        return result


_DIFFERS = {"data": "other data", "drawn": "other tasks", "seeds": "another seeding scheme, and so other tasks"}


def _require_alike(runs: Sequence[Any], asked: Evaluate) -> None:
    """Refuse to compare runs whose tasks would not be the same ones, before anything is computed."""
    first = runs[0]
    for other in runs[1:]:
        one, two = _kind(first, asked), _kind(other, asked)
        for name in one:
            if one[name] != two[name]:
                if name in _DIFFERS:
                    what = _DIFFERS[name]
                    raise MetagradError(
                        f"{other.folder} has {what} than {first.folder}: they cannot be compared task by task"
                    )
                raise MetagradError(
                    f"{other.folder} is tested with {two[name]} {name}, {first.folder} with {one[name]}: give --{name}"
                )


def _kind(run: Any, asked: Evaluate) -> dict[str, Any]:
    """Return everything that determines the tasks that a run is measured on."""
    # A user's source has no digest of its data, only one of the first tasks that it draws.
    kind = {"data": run.data["digest"], "drawn": run.data.get("drawn"), "seeds": run.seeds.rule}
    episodes = run.episodes
    if episodes is not None:
        kind |= {name: getattr(asked, name) or getattr(episodes, name) for name in ("ways", "shots", "queries")}
    return kind


def _difference(folder: Path, result: dict[str, Any], first: Path, reference: dict[str, Any]) -> str:
    """Return in words how much better a run is than the first, task by task."""
    if result["metric"] != reference["metric"]:
        raise MetagradError(
            f"{folder} is measured by {result['metric']}, {first} by {reference['metric']}: they cannot be compared"
        )
    import torch

    from metagrad.fewshot.evaluate import mean_and_ci95

    ours, theirs = (torch.tensor(one["per_task"], dtype=torch.float64) for one in (result, reference))
    mean, half = mean_and_ci95(ours - theirs)
    what = result["metric"].removeprefix("test_").removeprefix("val_").replace("_", " ")
    shown = f"{100 * mean:+.2f} ± {100 * half:.2f} points" if what == "accuracy" else f"{mean:+.4g} ± {half:.2g}"
    return f"{folder} minus {first}: {what} {shown} (paired, same {len(ours)} tasks)"
