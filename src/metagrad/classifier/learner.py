"""What a training run learned, ready to adapt to new classes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metagrad.classifier.artifact import Classifier
from metagrad.classifier.calibration import Calibration
from metagrad.classifier.network import Prototypes, for_ways, logits_and_features, standalone
from metagrad.data import DATASETS, Progress
from metagrad.data.features import features_of_images
from metagrad.data.names import short
from metagrad.data.reading import Reading
from metagrad.errors import MetagradError, in_short
from metagrad.experiment.episodes import Episodes, episodes_of
from metagrad.experiment.experiment import Experiment
from metagrad.experiment.pretrained import Pretrained, extractor_of, feature_shape, trunk_of
from metagrad.experiment.record import versions
from metagrad.experiment.run import Run
from metagrad.experiment.setup import build, learned
from metagrad.fewshot import R2D2, Algorithm, Batch, MemoryReduced, ProtoNet, WeightedBatch
from metagrad.fewshot.algorithms.heads import AdaptsHead
from metagrad.fewshot.head import last_layer
from metagrad.fewshot.tasks import AnyBatch
from metagrad.named_code import name_of
from metagrad.strict_json import is_number
from metagrad.torch_modes import default_modes
from metagrad.tree import Params

_MOST = 2000 * 28**2  # pixels of support images in one adaptation: memory follows them
_AT_ONCE = 640  # images of several tasks adapted to at once, at 28 pixels a side
ClassWeight = Literal["balanced"] | Mapping[str, float] | None
_ANY_WAYS = 2  # weights of a head that was never trained serve any number of classes
# Logistic regression on features of unit length, C = 10 at 25 pictures: chosen in RESULTS.md.
ON_FEATURES = MemoryReduced(l2=1e-2)
_TURNS = 10  # at most so many times one image of each class is left out


@dataclass(frozen=True)
class Learner:
    """Meta-learned weights and how they adapt.

    Attributes
    ----------
    experiment:
        of the run.
    reading:
        how a picture file becomes an image.
    theta:
        the weights with the best validation accuracy.
    inputs:
        shape of what the trained network takes: an image, or the features that a frozen trunk gives of it.
    facts:
        what a classifier should know of where it came from.
    calibration:
        what :func:`metagrad.classifier.calibrate.calibrate` found; ``None`` where it did not look.
    """

    experiment: Experiment
    reading: Reading
    theta: Params
    inputs: tuple[int, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None

    @classmethod
    def of(cls, run: Path | Run, *, calibrated: bool = True, code: Collection[str] = ()) -> Learner:
        """Return what a run learned, or what comes with metagrad.

        ``glyphs``, a model of drawn characters, and ``photos``, a pretrained network for photographs, come with
        metagrad; a folder of that name goes first. A run that is open already has its code: nothing has to be named.

        ``calibrated=False`` leaves aside what was found about its probabilities, if anything was.

        Raises
        ------
        MetagradError
            if it is not a run, or has no validated weights yet.
        """
        models = Path(str(resources.files("metagrad.classifier") / "models"))
        if not isinstance(run, Run) and not run.exists():
            if str(run) == "photos":
                learner = cls.untrained(Pretrained("efficientnet-lite0", centred=True))
                found = Calibration.read(models / "photos.json") if calibrated else None
                return replace(learner, calibration=found, facts={**learner.facts, "run": "photos"})
            if str(run) == "glyphs":
                run = models / "glyphs"
        opened = run if isinstance(run, Run) else Run.open(run, code=code)
        state = learned(opened, "best")
        facts = {
            "run": opened.folder.name,
            "dataset": opened.dataset,
            "digest": state.digest,
            "step": state.facts["best_step"],
            "val_accuracy": state.facts["best_score"],
        }
        calibration = Calibration.of_run(opened, state.digest) if calibrated else None
        return replace(cls.now(opened, state.theta), facts=facts, calibration=calibration)

    @classmethod
    def untrained(cls, network: Pretrained, *, method: Algorithm = ON_FEATURES) -> Learner:
        """Return a pretrained network as it is: nothing is meta-learned, and a task adapts the head on its features.

        Raises
        ------
        MetagradError
            If its package or its weights are missing.

        Examples
        --------
        >>> from metagrad.experiment import Pretrained
        >>> Learner.untrained(Pretrained("efficientnet-lite0")).inputs  # doctest: +SKIP
        (1280,)
        """
        experiment = Experiment(tasks=Episodes("folder"), network=network, method=method)
        extractor = extractor_of(network)
        if extractor is None:
            raise MetagradError("without training a pretrained network is left as it is: take body nothing")
        built, model = build(experiment, extractor.shape, _ANY_WAYS)
        facts = {"run": network.name, "dataset": None, "digest": extractor.digest, "step": 0, "val_accuracy": None}
        reading = Reading("photograph", extractor.image_size)
        return cls(experiment, reading, built.init(model), extractor.shape, facts)

    @property
    def most(self) -> int:
        """How many images one adaptation takes at most."""
        return _MOST // self.reading.size**2

    @classmethod
    def now(cls, run: Run, theta: Params) -> Learner:
        """Return what a run that is training has learned so far.

        Raises
        ------
        MetagradError
            if its tasks are not of pictures.
        """
        if run.dataset is None:
            raise MetagradError(f"{run.folder} did not learn from pictures of a data set: use Run.adapt from Python")
        size = run.inputs[-1] if len(run.inputs) == 3 else _image_size(run.experiment)
        return cls(run.experiment, Reading.of(run.dataset, size), theta, run.inputs)

    @property
    def episodes(self) -> Episodes:
        """How the run's tasks are drawn."""
        found = episodes_of(self.experiment.tasks)
        assert found is not None
        return found

    def _built(self, ways: int) -> tuple[Any, nn.Module]:
        """Return the method and a network of so many outputs."""
        return build(self.experiment, self.inputs, ways)

    def network_inputs(self, images: Tensor, *, progress: Progress | None = None) -> Tensor:
        """Return what the trained network takes of images uint8 ``(N, C, H, W)``: ``(N, *inputs)``, float32.

        Of a pretrained network these are features. They are computed once for each picture and kept in the cache.
        """
        extractor = extractor_of(self.experiment.network)
        if extractor is None:
            return images.float() / 255
        return features_of_images(images, extractor, progress=progress)

    @default_modes()
    def adapt(self, images: Tensor, labels: Sequence[str], *, class_weight: ClassWeight = "balanced") -> Classifier:
        """Adapt to new classes: any number of them, any number of images of each.

        Parameters
        ----------
        images:
            uint8 ``(N, C, H, W)``, as :attr:`reading` makes them.
        labels, class_weight:
            as of :meth:`adapt_inputs`.

        Raises
        ------
        MetagradError
            As :meth:`adapt_inputs` does, and for more images than fit into one adaptation.
        """
        if len(images) > self.most:
            raise MetagradError(
                f"{len(images)} support images are more than {self.most}: a few of each class do, test on the rest"
            )
        return self.adapt_inputs(self.network_inputs(images), labels, class_weight=class_weight)

    @default_modes()
    def adapt_inputs(self, x: Tensor, labels: Sequence[str], *, class_weight: ClassWeight = "balanced") -> Classifier:
        """Adapt to new classes, from what the trained network takes.

        Parameters
        ----------
        x:
            float32 ``(N, *inputs)``, as :meth:`network_inputs` gives them.
        labels:
            the class of each; classes are put in alphabetical order.
        class_weight:
            how much a class counts in what is adapted. ``"balanced"``: all alike, however many images there are of
            each; else the many decide for the few. ``None``: all images alike. Or numbers by class, of an image of it,
            whose ratios matter; 1 for those that are left out. Nearest class means (``protonet``) know of no weights.

        Raises
        ------
        MetagradError
            For fewer than two classes, or weights that cannot be.
        """
        classes = tuple(sorted(set(labels)))
        if len(classes) < 2:
            raise MetagradError(
                f"there is one class only ({classes[0]}): show at least two" if classes else "no images"
            )
        y = torch.tensor([classes.index(label) for label in labels])
        weight = example_weights(y, classes, class_weight)
        ((network, grad_norm),) = self.solved(x[None], y[None], len(classes), weight)
        with torch.inference_mode():
            logits, features = logits_and_features(network, x)
            prototypes = Prototypes.of(features, y, len(classes))
        counts = torch.bincount(y)
        expected = self.calibration.at(len(classes), int(counts.median())) if self.calibration else None
        facts = {
            **self.facts,
            "method": name_of(self.experiment.method),
            "trained": "{}-way {}-shot".format(*self.episodes.sizes("train")),
            "images": dict(zip(classes, counts.tolist(), strict=True)),
            "fit": float((logits.argmax(-1) == y).float().mean()),
            "inner_grad_norm": grad_norm,
            "expected": asdict(expected) if expected else None,
            "expected_of": self.calibration.of if self.calibration else None,
            "versions": versions(),
        }
        return Classifier(
            network,
            classes,
            self.reading,
            self.experiment.network,
            prototypes,
            temperature=expected.temperature if expected else 1.0,
            ood_threshold=expected.ood_threshold if expected else None,
            trunk=trunk_of(self.experiment.network),
            examples=(x, y) if feature_shape(self.experiment.network) else None,
            facts=facts,
        )

    @default_modes()
    def solved(self, x: Tensor, y: Tensor, ways: int, weight: Tensor | None = None) -> list[tuple[nn.Module, float]]:
        """Return the networks adapted to T tasks, and the gradient norms that their inner problems are left at.

        Parameters
        ----------
        x, y:
            float32 ``(T, N, *inputs)`` and int64 ``(T, N)``, labels below ``ways``.
        weight:
            ``(N,)``, how much each image counts, 1 in the mean; ``None``: all alike.
        """
        method, model = self._built(ways)
        theta = for_ways(self.theta, method.init(model))
        networks: list[tuple[nn.Module, float]] = []
        size = max(1, _AT_ONCE * 28**2 // (x.shape[1] * torch.Size(self.inputs[-2:]).numel()))
        for some, labels in zip(x.split(size), y.split(size), strict=True):
            with torch.no_grad():
                solution = method.adapt(model, theta, batch_of(some, labels, weight))
                weights = method.weights(model, theta, solution)
            for task, left in enumerate(solution.grad_norm.tolist()):
                of_task = {name: leaf[task] for name, leaf in weights.items()}
                networks.append((standalone(model, of_task, some[task]), left))
        return networks

    @default_modes()
    def leave_one_out(
        self,
        x: Tensor,
        labels: Sequence[str],
        *,
        class_weight: ClassWeight = "balanced",
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> LeftOut | None:
        """Adapt without one image of each class and classify those, in turn, ten times at most.

        One of *each*: a class that alone lacks an image loses against the others, and the accuracy would come out far
        too low. Where a method adapts the head alone, the features of all images are computed once, with the batch
        statistics of all: these know of no label. Other methods adapt the whole network anew.

        Return ``None`` where every class has one image.

        Parameters
        ----------
        x, labels:
            as of :meth:`adapt_inputs`.
        """
        classes = sorted(set(labels))
        y, ways = torch.tensor([classes.index(label) for label in labels]), len(classes)
        counts = torch.bincount(y, minlength=ways)
        turn = torch.stack([(y[:index] == y[index]).sum() for index in range(len(y))])  # the how-manieth of its class
        turns = min(_TURNS, int(counts.max()))
        if turns < 2:
            return None
        numbers, labelled = [], []
        head = self._head(x, y, ways)
        for done in range(turns):
            out = (turn == done) & (counts[y] > 1)
            rest = ~out
            weight = example_weights(y[rest], classes, class_weight)
            if head is None:
                ((network, _),) = self.solved(x[rest][None], y[rest][None], ways, weight)
                with torch.inference_mode():
                    logits = network(x[out])
            else:
                logits = head.logits(rest, y[rest], out, weight)
            numbers += out.nonzero().flatten().tolist()
            labelled += [classes[way] for way in logits.argmax(-1).tolist()]
            progress(done + 1, turns)
        return LeftOut(tuple(numbers), tuple(labelled), tuple(labels[number] for number in numbers))

    def _head(self, x: Tensor, y: Tensor, ways: int) -> _HeadAlone | None:
        """Return the head with the images' features, where the method adapts nothing else."""
        method, model = self._built(ways)
        if not isinstance(method, AdaptsHead | ProtoNet | R2D2):
            return None
        ((network, _),) = self.solved(x[None], y[None], ways)
        with torch.inference_mode():
            features = logits_and_features(network, x)[1]
        path = last_layer(model)
        alone = nn.Sequential(OrderedDict(body=nn.Identity(), head=model.get_submodule(path)))
        theta = {".features": features[0, 0]}  # of these digits; a name that is no weight
        for name, leaf in for_ways(self.theta, method.init(model)).items():
            if name.startswith("."):
                theta[name] = leaf
            elif name.startswith(f"{path}."):
                theta[name.replace(path, "head", 1)] = leaf
        return _HeadAlone(replace(method, head="head.*"), alone, theta, features)


@dataclass(frozen=True)
class LeftOut:
    """What became of images that were left out of the adaptation in turn.

    Attributes
    ----------
    numbers:
        which images, by their places among all.
    predicted, labels:
        the class that each was taken for, and its own.
    """

    numbers: tuple[int, ...]
    predicted: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def mistakes(self) -> list[int]:
        """Places in :attr:`numbers` of the images that were taken for another class."""
        return [place for place, one in enumerate(self.predicted) if one != self.labels[place]]

    def as_json(self) -> dict[str, float]:
        """Return the fraction that was right, and of how many."""
        count = len(self.numbers)
        return {"accuracy": 1 - len(self.mistakes) / count, "images": count}


@dataclass(frozen=True)
class _HeadAlone:
    """A method on features that were computed once."""

    method: AdaptsHead | ProtoNet | R2D2
    model: nn.Module
    theta: Params
    features: Tensor

    def logits(self, learned: Tensor, y: Tensor, asked: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the logits of the images ``asked``, adapted to those ``learned`` and their labels."""
        with torch.no_grad():
            solution = self.method.adapt(
                self.model, self.theta, batch_of(self.features[learned][None], y[None], weight)
            )
            return self.method.predict(self.model, self.theta, solution, self.features[asked][None])[0]


def _image_size(experiment: Experiment) -> int | None:
    """Return the side of the pictures that features are computed of; ``None``: as the data set has them."""
    episodes, extractor = episodes_of(experiment.tasks), extractor_of(experiment.network)
    assert episodes is not None
    if not DATASETS[episodes.dataset].pictures or extractor is None:
        return None
    return episodes.image_size or extractor.image_size


def example_weights(y: Tensor, classes: Sequence[str], class_weight: ClassWeight) -> Tensor | None:
    """Return how much each image counts, 1 in the mean, or ``None`` where all count alike.

    Raises
    ------
    MetagradError
        for weights of classes that there are none of, or that are not positive numbers.
    """
    if class_weight is None:
        return None
    counts = torch.bincount(y, minlength=len(classes)).double()
    if class_weight == "balanced":
        each = 1 / counts.clamp(min=1)
    elif isinstance(class_weight, Mapping):
        if stray := sorted(str(name) for name in class_weight if name not in classes):
            raise MetagradError(f"class_weight names {short(stray[0])!r}: the classes are {short(', '.join(classes))}")
        for name, value in class_weight.items():
            if not is_number(value) or value <= 0:
                raise MetagradError(f"class_weight of {short(name)!r} must be a positive number, got {in_short(value)}")
        each = torch.tensor([float(class_weight.get(name, 1.0)) for name in classes], dtype=torch.float64)
    else:
        raise MetagradError(f'class_weight is "balanced", None or numbers by class, not {in_short(class_weight)}')
    weight = each[y]
    return None if (weight == weight[0]).all() else (weight / weight.mean()).float()


def batch_of(x: Tensor, y: Tensor, weight: Tensor | None) -> AnyBatch:
    """Return support sets whose examples all count as ``weight``, ``(N,)``, says."""
    return Batch(x, y) if weight is None else WeightedBatch(x, y, weight.expand_as(y))
