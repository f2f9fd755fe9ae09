"""A data set's episodes as a value: which data set, how many classes and images a task."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from metagrad import data
from metagrad.data import Dataset, ImageClasses, Progress
from metagrad.data.sources import data_directory
from metagrad.errors import MetagradError
from metagrad.experiment.networks import Conv4Config
from metagrad.experiment.sources import Sources, TaskSet
from metagrad.fewshot import EpisodeSampler


@dataclass(frozen=True)
class Episodes:
    """Tasks of ``ways`` classes of a data set, with ``shots`` support and ``queries`` query images of each.

    Parameters
    ----------
    dataset:
        ``"glyphs"``, ``"omniglot"``, ``"cifar-fs"``, ``"fc100"``, ``"mini-imagenet"``, ``"tiered-imagenet"``, or
        ``"folder"``: pictures of your own.
    ways:
        classes a task; chance is 1 / ways.
    shots:
        support images a class: what a task adapts on.
    queries:
        query images a class: what a task is judged on. Fewer make a step cheaper and noisier.
    image_size:
        side of the pictures in pixels, for mini-imagenet, tiered-imagenet and folder; time grows with its square.
        ``None``: 84.

    Raises
    ------
    MetagradError
        for a data set that there is none of, or a value outside its range.
    """

    dataset: str
    ways: int = field(default=5, kw_only=True)
    shots: int = field(default=1, kw_only=True)
    queries: int = field(default=5, kw_only=True)
    image_size: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.dataset not in data.DATASETS:
            raise MetagradError(f"no data set is called {self.dataset!r}: there are {', '.join(data.DATASETS)}")
        for name, least in (("ways", 2), ("shots", 1), ("queries", 1), ("image_size", 8)):
            value = getattr(self, name)
            if name == "image_size" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise MetagradError(f"{name} must be a whole number, got {value!r}")
            if not least <= value <= 10**9:
                raise MetagradError(
                    f"{name} must be {f'at least {least}' if value < least else 'smaller'}, got {value}"
                )
        pictures = data.DATASETS[self.dataset].pictures
        if self.image_size is not None and not pictures:
            raise MetagradError(f"image_size is for data sets of pictures, not {self.dataset}: leave it out")
        if self.image_size is None and pictures:
            object.__setattr__(self, "image_size", 84)

    @property
    def meta_steps(self) -> int:
        """How many meta-steps suit the data set."""
        return data.DATASETS[self.dataset].meta_steps

    @property
    def network(self) -> Conv4Config:
        """The network that suits the data set."""
        return Conv4Config(pooling=data.DATASETS[self.dataset].pictures)

    def open(
        self,
        *,
        device: torch.device,
        data_dir: Path | None = None,
        split: Any = None,
        strict: bool = False,
        progress: Progress | None = None,
    ) -> Sources:
        """Load the data set and return samplers of its three splits.

        Raises
        ------
        MetagradError
            for data that are not there or damaged, or a split with too few classes.
        """
        found = data.load(
            self.dataset,
            data_dir=data_dir,
            image_size=self.image_size,
            split=split,
            strict=strict,
            progress=progress,
        )
        return self.of(found, device=device, data_dir=data_dir, strict=strict)

    def of(
        self,
        dataset: Dataset,
        *,
        device: torch.device | str = "cpu",
        data_dir: Path | None = None,
        strict: bool = False,
    ) -> Sources:
        """Return samplers of a data set that is loaded."""
        few = self._too_few(dataset)
        if few and strict:
            raise MetagradError(few)
        device = torch.device(device)
        self.sampler(dataset, "test")  # refuses before anything is trained
        channels, *_, size = dataset.train.images.shape[1:]
        record: dict[str, Any] = {}
        if self.dataset == "folder":
            record = {
                "data_dir": str(data_dir.absolute()) if data_dir else None,
                "split": {which: list(getattr(dataset, which).names) for which in ("train", "val", "test")},
            }
        elif self.dataset != "glyphs" and (where := data_directory(data_dir)) is not None:
            record["data_dir"] = str(where.absolute())
        return Sources(
            train=self.sampler(dataset, "train", device=device, rotations=dataset.rotations),
            val=self.sampler(dataset, "val", device=device),
            test=self.sampler(dataset, "test", device=device),
            inputs=(channels, size, size),
            outputs=self.ways,
            device=device,
            draws_on=device,
            digest=dataset.digest,
            protocol={"dataset": dataset.name, "preprocessing": dataset.preprocessing},
            record=record,
            dataset=dataset,
            notes=(*dataset.notes, *([few] if few else [])),
        )

    def sampler(
        self,
        dataset: Dataset,
        which: str,
        *,
        device: torch.device | str = "cpu",
        queries: int | None = None,
        rotations: bool = False,
    ) -> EpisodeSampler:
        """Return the sampler of a split, of the classes that have enough images.

        Raises
        ------
        MetagradError
            if these are too few; names the split.
        """
        classes: ImageClasses = getattr(dataset, which).to(device)
        asked = queries or self.queries
        enough = classes.with_at_least(self.shots + asked)
        if len(enough.names) < self.ways:
            missing = len(classes.names) - len(enough.names)
            short = f", {missing} more with fewer than {self.shots} + {asked} images" if missing else ""
            raise MetagradError(
                f"a task of {self.ways} ways is more than the {len(enough.names)} classes for {_FOR[which]}{short}: "
                f"lower --ways{', --shots or --queries' if missing else ''}"
            )
        return EpisodeSampler(classes=enough, ways=self.ways, shots=self.shots, queries=asked, rotations=rotations)

    def _too_few(self, dataset: Dataset) -> str | None:
        """Say which classes are left out for having too few images, if any are."""
        small = [
            name
            for classes in (dataset.train, dataset.val, dataset.test)
            for name, count in zip(classes.names, classes.counts.tolist(), strict=True)
            if count < self.shots + self.queries
        ]
        if not small:
            return None
        return (
            f"left out {len(small)} class{'es' * (len(small) > 1)} with fewer than {self.shots} + {self.queries} "
            f"images ({small[0]}): add images, or lower --shots or --queries"
        )


_FOR = {"train": "training", "val": "validation", "test": "the test"}


def episodes_of(tasks: Any) -> Episodes | None:
    """Return how tasks are drawn from a data set, if they are."""
    if isinstance(tasks, TaskSet):
        return episodes_of(tasks.tasks)
    return tasks if isinstance(tasks, Episodes) else None
