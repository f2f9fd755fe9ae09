"""``metagrad data``."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from metagrad.cli.arguments import arg
from metagrad.cli.parts import table
from metagrad.cli.text import printable
from metagrad.errors import MetagradError

if TYPE_CHECKING:
    from metagrad.cli.progress import Screen
    from metagrad.data import Dataset


@dataclass(frozen=True)
class Data:
    """List the data sets, describe one, check that a folder of pictures can be used, or list cached features."""

    what: Literal["list", "info", "verify", "features"] = arg(positional=True, metavar="WHAT")
    """What to do. list: list all data sets. info NAME: describe a data set's classes and images. verify DIR or verify
    NAME: read every file of a folder, zip or data set, also cached ones, and print what is wrong (exit code 1; 2 if
    it cannot be used). features: list the cached features of pictures, with their sizes."""
    name: str | None = arg(None, positional=True, metavar="NAME|DIR")
    """A data set (info, verify), or a folder or zip (verify)."""
    data_dir: Path | None = arg(None, metavar="DIR")
    """Folder with the data set's original files. Default: METAGRAD_DATA, else they are downloaded."""
    clean: bool = False
    """With features: remove them from the cache; they are computed again when needed."""
    image_size: int = arg(84, least=8)
    """Side in pixels to which pictures of a data set without a fixed size are resized."""
    split: Path | None = arg(None, metavar="FILE")
    """With verify DIR: JSON file with the classes of each split, as in metagrad train folder --split."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code (1: verify found something to mend)."""
        from metagrad.cli.progress import Screen

        screen = Screen()
        known = table()["data"]
        if self.clean and self.what != "features":
            raise MetagradError(f"--clean is for metagrad data features, not {self.what}: leave it out")
        if self.what == "list":
            for name, about in known.items():
                screen.write_line(f"{name:18} {about['about']}")
            return 0
        if self.what == "features":
            return _features(screen, clean=self.clean)
        if self.name is None:
            raise MetagradError(
                f"metagrad data {self.what} needs a {'data set' if self.what == 'info' else 'folder or data set'}"
            )
        from metagrad import data
        from metagrad.cli.progress import data_progress

        named = self.name in known and self.name != "folder"
        if self.what == "verify" and not (named and not Path(self.name).exists()):
            dataset = self._verified(self.name, screen)
        elif self.name not in known:
            raise MetagradError(f"no data set is called {self.name!r}: choose one of {', '.join(known)}")
        elif self.name == "folder" and self.data_dir is None:
            raise MetagradError("give the folder or zip of pictures with --data-dir")
        else:
            dataset = data.load(
                self.name,
                data_dir=self.data_dir,
                image_size=self.image_size,
                anew=self.what == "verify",
                progress=data_progress(screen),
            )
        for line in describe(dataset):
            screen.write_line(printable(line))
        return 1 if self.what == "verify" and dataset.notes else 0

    def _verified(self, name: str, screen: Screen) -> Dataset:
        from metagrad import data
        from metagrad.cli.progress import data_progress
        from metagrad.data import pictures
        from metagrad.data.sources import read_json

        try:
            return data.load(
                "folder",
                data_dir=name,
                image_size=self.image_size,
                split=None if self.split is None else read_json(self.split),
                anew=True,
                progress=data_progress(screen),
            )
        except MetagradError:  # print what is wrong with its files too
            with contextlib.suppress(MetagradError):
                for note in pictures.load(Path(name), size=self.image_size).notes():
                    screen.write_line(printable(note))
            raise


def _features(screen: Screen, *, clean: bool) -> int:
    """List the features that the cache keeps, or remove them."""
    from metagrad.data import feature_folders

    if clean:
        screen.write_line(f"removed {feature_folders.said_size(feature_folders.clean())} of features")
        return 0
    kept = feature_folders.stores()
    for one in kept:
        used = time.strftime("%Y-%m-%d", time.localtime(one.used))
        shape = "×".join(map(str, one.shape)) or "?"
        size = feature_folders.said_size(one.size)
        screen.write_line(printable(f"{one.name or 'unreadable':30} {shape:>12} {size:>10}  used {used}  {one.folder}"))
    screen.write_line(f"{feature_folders.said_size(sum(one.size for one in kept))} in all; --clean removes them")
    return 0


def describe(dataset: Dataset) -> list[str]:
    """Describe a data set in a few lines."""
    lines = [f"{dataset.name}: {dataset.preprocessing}"]
    for which in ("train", "val", "test"):
        classes = getattr(dataset, which)
        fewest, most = int(classes.counts.min()), int(classes.counts.max())
        each = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        names = ", ".join(classes.names[:3]) + (", ..." if len(classes.names) > 3 else "")
        count = len(classes.names)
        lines.append(f"  {which:5} {count} class{'es' * (count != 1)} of {each} images ({names})")
    if dataset.rotations:
        lines.append("  in training, each class rotated by 90, 180 or 270 degrees counts as another class")
    lines.append(f"  digest {dataset.digest}")
    return lines + [f"  {note}" for note in dataset.notes]
