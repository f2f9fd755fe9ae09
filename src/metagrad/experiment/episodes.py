"""A data set's episodes as a value: which data set, how many classes and images a task."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from metagrad import data
from metagrad.data import Classes, Dataset, Progress
from metagrad.data.class_splits import SPLITS
from metagrad.data.features import FeatureDataset, FeatureExtractor, features_of_dataset
from metagrad.data.folder_features import features_of_folder
from metagrad.data.sources import data_directory
from metagrad.errors import MetagradError
from metagrad.experiment.networks import Conv4Config
from metagrad.experiment.sources import Sources, TaskSet
from metagrad.fewshot import EpisodeSampler, Variation
from metagrad.scalars import number


@dataclass(frozen=True)
class Episodes:
    """Tasks of ``ways`` classes of a data set, with ``shots`` support and ``queries`` query images of each.

    Parameters
    ----------
    dataset:
        ``"glyphs"``, ``"omniglot"``, ``"omniglot-alphabets"``, ``"drawings"``, ``"cifar-fs"``, ``"fc100"``,
        ``"mini-imagenet"``, ``"tiered-imagenet"``, or ``"folder"``: pictures of your own.
    ways:
        classes a task; chance is 1 / ways.
    shots:
        support images a class: what a task adapts on.
    queries:
        query images a class: what a task is judged on. Fewer make a step cheaper and noisier.
    image_size:
        side of the pictures in pixels, for mini-imagenet, tiered-imagenet and folder; time grows with its square.
        ``None``: 84.
    train_ways:
        classes of a training task, for methods whose head has no learned row for each class (protonet, r2d2, and the
        others with another start than rows): more make a harder task, and better features. ``None``: as many as
        elsewhere.
    train_shots:
        support images a class of training tasks; ``None``: as many as elsewhere.
    train_queries:
        query images a class of training tasks; ``None``: as many as elsewhere.
    variation:
        how much drawings are varied in training, each image by itself: 0 leaves them as they are; 1 moves them by up to
        2 pixels, turns them by up to 10 degrees, slants them by up to 0.15 and blends strokes by up to half with ones a
        pixel thicker or thinner at each edge; at most 2. For glyphs, omniglot and drawings.

    Raises
    ------
    MetagradError
        for a data set that there is none of, or a value outside its range.
    """

    gives_features: ClassVar[bool] = True  # to a network with a frozen trunk

    dataset: str
    ways: int = field(default=5, kw_only=True)
    shots: int = field(default=1, kw_only=True)
    queries: int = field(default=5, kw_only=True)
    image_size: int | None = field(default=None, kw_only=True)
    train_ways: int | None = field(default=None, kw_only=True)
    train_shots: int | None = field(default=None, kw_only=True)
    train_queries: int | None = field(default=None, kw_only=True)
    variation: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if self.dataset not in data.DATASETS:
            raise MetagradError(f"no data set is called {self.dataset!r}: there are {', '.join(data.DATASETS)}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is None and name not in ("ways", "shots", "queries"):
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
        self._require_variation()

    def _require_variation(self) -> None:
        found = number(self.variation)
        if found is None or not 0 <= found <= _MOST_VARIED:
            raise MetagradError(f"variation must be a number from 0 to {_MOST_VARIED:g}, got {self.variation!r}")
        if found and not data.DATASETS[self.dataset].strokes:
            raise MetagradError(f"variation is for data sets of drawings, not {self.dataset}: leave it out")
        object.__setattr__(self, "variation", float(found))

    def sizes(self, which: str) -> tuple[int, int, int]:
        """Return ways, shots and queries of a task of a split."""
        if which != "train":
            return self.ways, self.shots, self.queries
        return self.train_ways or self.ways, self.train_shots or self.shots, self.train_queries or self.queries

    @property
    def varied(self) -> Variation | None:
        """How training images are varied, if they are."""
        usual, much = Variation(), self.variation
        if not much:
            return None
        return Variation(
            shift=much * usual.shift, turn=much * usual.turn, shear=much * usual.shear, thickness=much * usual.thickness
        )

    @property
    def training(self) -> dict[str, str]:
        """A protocol's entries about training tasks, where they differ from the test tasks."""
        found = {}
        ways, shots, queries = self.sizes("train")
        if (ways, shots, queries) != self.sizes("test"):
            found["training"] = f"{ways}-way {shots}-shot, {queries} queries a class"
        if how := self.varied:
            found["variation"] = (
                f"training images moved by up to {how.shift:g} pixels, turned by {how.turn:g} degrees, slanted by "
                f"{how.shear:g}, thickness {how.thickness:g}"
            )
        return found

    @property
    def meta_steps(self) -> int:
        """Default number of meta-steps."""
        return data.DATASETS[self.dataset].meta_steps

    @property
    def minutes(self) -> float | None:
        """Default time limit, in minutes, of training an untrained network; ``None``: no limit."""
        return _MINUTES if data.DATASETS[self.dataset].pictures else None

    @property
    def network(self) -> Conv4Config:
        """Default network."""
        return Conv4Config(pooling=data.DATASETS[self.dataset].pictures)

    def open(
        self,
        *,
        device: torch.device,
        data_dir: Path | None = None,
        split: Any = None,
        strict: bool = False,
        features: FeatureExtractor | None = None,
        progress: Progress | None = None,
    ) -> Sources:
        """Load the data set and return samplers of its three splits, with features in place of pictures if wanted.

        Raises
        ------
        MetagradError
            for data that are not there or damaged, or a split with too few classes.
        """
        if features is not None and self.variation:
            raise MetagradError("variation is for networks that are trained on the drawings themselves: leave it out")
        if features is not None and self.dataset == "folder" and data_dir is not None:
            rows = features_of_folder(
                data_dir, features, split=split, strict=strict, thumbnails=self.image_size, progress=progress
            )
            return self.of(rows, device=device, data_dir=data_dir, strict=strict)
        dataset = data.load(
            self.dataset,
            data_dir=data_dir,
            image_size=self.image_size if features is None or self.image_size is None else features.image_size,
            split=split,
            strict=strict,
            progress=progress,
        )
        of = dataset if features is None else features_of_dataset(dataset, features, progress=progress)
        return self.of(of, device=device, data_dir=data_dir, strict=strict)

    def of(
        self,
        dataset: Dataset | FeatureDataset,
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
        record: dict[str, Any] = {}
        if self.dataset == "folder":
            record = {
                "data_dir": str(data_dir.absolute()) if data_dir else None,
                "split": {which: list(getattr(dataset, which).names) for which in ("train", "val", "test")},
            }
        elif self.dataset != "glyphs" and (where := data_directory(data_dir)) is not None:
            record["data_dir"] = str(where.absolute())
        return Sources(
            train=self.sampler(dataset, "train", device=device, rotations=getattr(dataset, "rotations", False)),
            val=self.sampler(dataset, "val", device=device),
            test=self.sampler(dataset, "test", device=device),
            inputs=tuple(dataset.train.data.shape[1:]),
            outputs=self.ways,
            device=device,
            draws_on=device,
            digest=dataset.digest,
            protocol={"dataset": dataset.name, "preprocessing": dataset.preprocessing, **self.training},
            record=record,
            dataset=dataset,
            notes=(*dataset.notes, *([few] if few else [])),
        )

    def sampler(
        self,
        dataset: Dataset | FeatureDataset,
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
        classes: Classes = getattr(dataset, which).to(device)
        ways, shots, own = self.sizes(which)
        asked = queries or own
        enough = classes.with_at_least(shots + asked)
        if len(enough.names) < ways:
            missing = len(classes.names) - len(enough.names)
            short = f", {missing} more with fewer than {shots} + {asked} images" if missing else ""
            flags = [self._flag(name, which) for name in (("ways", "shots", "queries") if missing else ("ways",))]
            raise MetagradError(
                f"a task of {ways} ways is more than the {len(enough.names)} classes for {_FOR[which]}{short}: "
                f"lower {', '.join(flags[:2])}{f' or {flags[2]}' if missing else ''}"
            )
        return EpisodeSampler(
            classes=enough,
            ways=ways,
            shots=shots,
            queries=asked,
            rotations=rotations,
            variation=self.varied if which == "train" else None,
        )

    def _flag(self, name: str, which: str) -> str:
        own = which == "train" and getattr(self, f"train_{name}") is not None
        return f"--train-{name}" if own else f"--{name}"

    def _too_few(self, dataset: Dataset | FeatureDataset) -> str | None:
        """Say which classes are left out for having too few images, if any are."""
        small = []
        for which in SPLITS:
            classes, (_, shots, queries) = getattr(dataset, which), self.sizes(which)
            counts = zip(classes.names, classes.counts.tolist(), strict=True)
            small += [(name, which, shots, queries) for name, count in counts if count < shots + queries]
        if not small:
            return None
        name, which, shots, queries = small[0]
        return (
            f"left out {len(small)} class{'es' * (len(small) > 1)} with fewer than {shots} + {queries} "
            f"images ({name}): add images, or lower {self._flag('shots', which)} or {self._flag('queries', which)}"
        )


_LEAST = {
    "ways": 2, "shots": 1, "queries": 1, "image_size": 8, "train_ways": 2, "train_shots": 1, "train_queries": 1,
}  # fmt: skip
_MINUTES = 60.0  # photographs of 84 pixels take a day of a CPU to 10,000 meta-steps
_MOST_VARIED = 2.0  # twice the usual: strokes as thick or thin as a pixel at each edge makes them
_FOR = {"train": "training", "val": "validation", "test": "the test"}


def episodes_of(tasks: Any) -> Episodes | None:
    """Return how tasks are drawn from a data set, or ``None`` if they come from elsewhere."""
    if isinstance(tasks, TaskSet):
        return episodes_of(tasks.tasks)
    return tasks if isinstance(tasks, Episodes) else None
