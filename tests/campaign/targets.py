"""The formats that metagrad reads: where a file of each lies, which commands read it, and what they leave."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .fixtures import info
from .structures import opened

_CHECKPOINT = ("evaluate", "resume", "adapt", "report")


@dataclass(frozen=True)
class Target:
    """A file to change.

    Attributes
    ----------
    format:
        its row in the table.
    kind:
        of its structure (:data:`tests.campaign.mutations.STRUCTURES`).
    place:
        pattern below the trial's folder; one of the files that it finds is changed.
    peer:
        a file, below what the campaign starts from, that belongs elsewhere.
    commands:
        what reads it, by the names of :data:`COMMANDS`.
    input:
        whether it is a person's data: changed, it is other data, and another result is right.
    before:
        whether the command is run before the change too, so that its cache knows the file as it was: then the right
        result is that of the changed file and an empty cache.
    """

    format: str
    kind: str
    place: str
    peer: str
    commands: tuple[str, ...]
    input: bool = False
    before: bool = False


@dataclass(frozen=True)
class Command:
    """What is run in a trial's folder.

    Attributes
    ----------
    words:
        of the command line; ``BASE`` in them stands for what the campaign starts from.
    needs:
        what is copied from there into the trial's folder.
    writes:
        all that it may write, beside the cache.
    """

    words: tuple[str, ...]
    needs: tuple[str, ...]
    writes: tuple[str, ...] = ()


_OF_RUN = tuple(f"run/{name}" for name in ("last.safetensors", "best.safetensors", "config.json", "metrics.jsonl",
                                           "result.json", "calibration.json", "report.html", ".lock"))  # fmt: skip


def _data(name: str, folder: str, size: int = 16) -> tuple[str, ...]:
    return tuple(info(name, folder, size))


COMMANDS = {
    "evaluate": Command(("evaluate", "run", "--tasks", "4"), ("run",), ("run/evaluations.jsonl", "run/.lock")),
    "resume": Command(("train", "--resume", "run", "--meta-steps", "5"), ("run",), _OF_RUN),
    "check": Command(("check", "run", "--tasks", "1"), ("run",), ("run/checks.jsonl", "run/.lock")),
    "adapt": Command(("adapt", "run", "known", "--out", "out.model"), ("run", "known"), ("out.model",)),
    "adapt zip": Command(("adapt", "run", "known.zip", "--out", "out.model"), ("run", "known.zip"), ("out.model",)),
    "report": Command(("report", "run", "--out", "out.html"), ("run",), ("out.html",)),
    "predict": Command(("predict", "my.model", "new", "--format", "csv", "--reject"), ("my.model", "new")),
    "export": Command(("export", "my.model", "--format", "pt2", "--out", "out.pt2"), ("my.model",), ("out.pt2",)),
    "verify": Command(("data", "verify", "pictures", "--image-size", "16"), ("pictures",)),
    "verify zip": Command(("data", "verify", "pictures.zip", "--image-size", "16"), ("pictures.zip",)),
    "folder": Command(_data("folder", "BASE/pictures"), ()),
    "own folder": Command(_data("folder", "pictures"), ("pictures",)),
    "pickles": Command(_data("pickles", "pickles", 8), ("pickles",)),
    "pickles, cached": Command(_data("pickles", "BASE/pickles", 8), ()),
    "tables": Command(_data("tables", "tables", 8), ("tables",)),
    "cifar": Command(_data("cifar", "cifar", 32), ("cifar",)),
    "cifar, cached": Command(_data("cifar", "BASE/cifar", 32), ()),
    "omniglot": Command(_data("omniglot", "omniglot", 28), ("omniglot",)),
    "omniglot, cached": Command(_data("omniglot", "BASE/omniglot", 28), ()),
    "glyphs": Command(_data("glyphs", "", 28), ()),
}
_SHAPED, _SEEN = "pictures/rows-*-16-*", "pictures/seen-*"
TARGETS = (
    Target("config.json", "json", "run/config.json", "other/config.json", (*_CHECKPOINT, "check")),
    Target("last.safetensors", "safetensors", "run/last.safetensors", "other/last.safetensors", ("resume", "check")),
    Target("best.safetensors", "safetensors", "run/best.safetensors", "other/best.safetensors", _CHECKPOINT),
    Target("metrics.jsonl", "jsonl", "run/metrics.jsonl", "other/metrics.jsonl", ("report", "resume")),
    Target("result.json", "json", "run/result.json", "other/result.json", ("report", "resume")),
    Target("calibration.json", "json", "run/calibration.json", "other/calibration.json", ("report", "adapt", "resume")),
    Target("evaluations.jsonl", "jsonl", "run/evaluations.jsonl", "other/evaluations.jsonl", ("evaluate",)),
    Target("checks.jsonl", "jsonl", "run/checks.jsonl", "other/checks.jsonl", ("check",)),
    Target("model", "safetensors", "my.model", "other.model", ("predict", "predict", "predict", "export")),
    *(Target(f"picture, {ending}", ending, place, f"new/{number}.{ending}", commands, input=True)
      for number, ending in enumerate(("png", "jpg", "webp", "gif", "bmp", "tiff", "ppm"))
      for place, commands in ((f"known/*/*.{ending}", ("adapt",)), (f"new/*.{ending}", ("predict",)))),
    Target("picture, png", "png", "pictures/*/*.png", "new/1.jpg", ("verify",), input=True),
    Target("zip of pictures", "zip", "known.zip", "pictures.zip", ("adapt zip",), input=True),
    Target("zip of pictures", "zip", "pictures.zip", "known.zip", ("verify zip",), input=True),
    Target("split.json", "json", "pictures/split.json", "run/config.json", ("verify",), input=True),
    Target("pickles", "pickle", "pickles/*.pkl", "pickles/mini-imagenet-cache-val.pkl", ("pickles",), input=True),
    Target("csv tables", "csv", "tables/*.csv", "tables/val.csv", ("tables",), input=True),
    Target("changed after it was cached", "png", "pictures/*/*.png", "pictures/kind11/0.png", ("own folder",),
           before=True),
    Target("changed after it was cached", "json", "pictures/split.json", "others/split.json", ("own folder",),
           before=True),
    Target("changed after it was cached", "csv", "tables/*.csv", "tables/val.csv", ("tables",), before=True),
    Target("changed after it was cached", "pickle", "pickles/*.pkl", "pickles/mini-imagenet-cache-val.pkl",
           ("pickles",), before=True),
    Target("zip of Omniglot", "zip", "omniglot/*.zip", "omniglot/images_evaluation.zip", ("omniglot",)),
    Target("archive of CIFAR-100", "bytes", "cifar/*.gz", "known.zip", ("cifar",)),
    *(Target(f"cache: {what} of pictures", ending, f"cache/{name}.{ending}", f"cache-others/{name}.{ending}",
             ("folder", "evaluate"))
      for what, ending, name in (("rows", "npy", _SHAPED), ("facts", "json", _SHAPED), ("facts", "json", _SEEN))),
    Target("cache: pickles", "npy", "cache/pictures/pickled-*.npy", f"cache/{_SHAPED}.npy",
           ("pickles, cached",)),
    Target("cache: pickles", "json", "cache/pictures/pickled-*.json", "run/config.json", ("pickles, cached",)),
    Target("cache: CIFAR-100", "npy", "cache/cifar100/*.npy", f"cache/{_SHAPED}.npy", ("cifar, cached",)),
    Target("cache: CIFAR-100", "json", "cache/cifar100/*.json", "run/config.json", ("cifar, cached",)),
    Target("cache: Omniglot", "npy", "cache/omniglot/*.npy", f"cache/{_SHAPED}.npy", ("omniglot, cached",)),
    Target("cache: Omniglot", "json", "cache/omniglot/*.json", "run/config.json", ("omniglot, cached",)),
    Target("cache: glyphs", "json", "cache/glyphs/*.json", "run/config.json", ("glyphs",)),
    Target("cache: glyphs", "npy", "cache/glyphs/*.npy", f"cache/{_SHAPED}.npy", ("glyphs",)),
)  # fmt: skip
# Sizes, rates, and how far it has come, which is said of what takes a while.
_PASSING = re.compile(
    r"\([0-9]+ kB\)|[0-9.]+ steps/s, [0-9:]+ left|^[^:\n]+: ([0-9]+/[0-9]+|[0-9]+ % done, .* left)\n", re.MULTILINE
)
_NO_MEANING = ("command", "versions", "launch", "seconds", "cpu_seconds", "train_seconds", "peak_memory_mb")
# What no two runs share, and what follows from it.
_OWN = (*_NO_MEANING, "run", "weights", "digest", "metrics_bytes", "metrics_digest")


def meaning(target: Target, data: bytes) -> Any:
    """Return what a file says, without what no result depends on: spaces, the command, versions, times."""
    if target.kind not in ("json", "jsonl"):
        return data
    try:
        texts = [data] if target.kind == "json" else data.splitlines()
        return [_without(_NO_MEANING, json.loads(text)) for text in texts]
    except (ValueError, RecursionError):
        return data


def _without(names: tuple[str, ...], value: Any) -> Any:
    return {key: one for key, one in value.items() if key not in names} if isinstance(value, dict) else value


def result(command: str, folder: Path, said: str) -> list[Any]:
    """Return what a command came to: what it printed and wrote, but for times and sizes."""
    found: list[Any] = [_PASSING.sub("", said)]
    return found + list(_written(command, folder))


def _written(command: str, folder: Path) -> Iterator[Any]:
    run = folder / "run"
    if command in ("evaluate", "check"):
        lines = (run / f"{'evaluations' if command == 'evaluate' else 'checks'}.jsonl").read_bytes().splitlines()
        yield meaning(TARGETS[0], lines[-1])
    elif command.startswith("adapt"):
        yield _model((folder / "out.model").read_bytes())
    elif command == "report":
        yield (folder / "out.html").read_bytes()
    elif command == "export":
        yield (folder / "out.pt2").exists()
    elif command == "resume":
        yield dict(finished(run))


def _model(file: bytes) -> Any:
    """Return what a model holds, without its digests: that of its run's file is no result."""
    header, data = opened(file)
    facts = json.loads(header.pop("__metadata__")["metagrad"])
    del facts["facts"]["digest"]
    return header, facts, data


def finished(run: Path) -> Iterator[tuple[str, Any]]:
    """Yield all that a run came to, each with its name, but for times and memory."""
    from metagrad.experiment.run import Run

    opened = Run.open(run)
    for name in ("last", "best"):
        state = opened.load(name)
        held = {key: (str(leaf.dtype), leaf.shape, leaf.numpy().tobytes()) for key, leaf in state.tensors.items()}
        yield f"{name}.safetensors", held
        facts = {key: value for key, value in state.facts.items() if key not in _OWN}
        yield f"facts of {name}.safetensors", facts
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
    yield "metrics.jsonl", [_without(_OWN, line) for line in lines]
    for name in ("result.json", "calibration.json"):
        yield name, _without(_OWN, json.loads((run / name).read_bytes()))
    yield "report.html", (run / "report.html").read_bytes().endswith(b"</html>\n")
