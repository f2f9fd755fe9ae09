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
from metagrad.data.names import short
from metagrad.data.reading import Reading
from metagrad.errors import MetagradError, in_short
from metagrad.experiment.episodes import Episodes, episodes_of
from metagrad.experiment.experiment import Experiment
from metagrad.experiment.record import versions
from metagrad.experiment.run import Run
from metagrad.experiment.setup import build, learned
from metagrad.fewshot import R2D2, Batch, ProtoNet, WeightedBatch
from metagrad.fewshot.algorithms.heads import AdaptsHead
from metagrad.fewshot.head import last_layer
from metagrad.fewshot.tasks import AnyBatch
from metagrad.strict_json import is_number
from metagrad.torch_modes import default_modes
from metagrad.tree import Params

_MOST = 2000 * 28**2  # pixels of support images in one adaptation: memory follows them
_AT_ONCE = 640  # images of several tasks adapted to at once, at 28 pixels a side
ClassWeight = Literal["balanced"] | Mapping[str, float] | None
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
    facts:
        what a classifier should know of where it came from.
    calibration:
        what :func:`metagrad.classifier.calibrate.calibrate` found; ``None`` where it did not look.
    """

    experiment: Experiment
    reading: Reading
    theta: Params
    facts: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None

    @classmethod
    def of(cls, run: Path | Run, *, calibrated: bool = True, code: Collection[str] = ()) -> Learner:
        """Return what a run learned; ``glyphs``, where there is no such folder, is the model that comes with metagrad.

        A run that is open already has its code: nothing has to be named.

        ``calibrated=False`` leaves aside what was found about its probabilities, if anything was.

        Raises
        ------
        MetagradError
            if it is not a run, or has no validated weights yet.
        """
        if not isinstance(run, Run) and str(run) == "glyphs" and not run.exists():
            run = Path(str(resources.files("metagrad.classifier") / "models" / "glyphs"))
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
        return cls(run.experiment, Reading.of(run.dataset, run.inputs[-1]), theta)

    @property
    def episodes(self) -> Episodes:
        """How the run's tasks are drawn."""
        found = episodes_of(self.experiment.tasks)
        assert found is not None
        return found

    def _built(self, ways: int) -> tuple[Any, nn.Module]:
        """Return the method and a network of so many outputs."""
        return build(self.experiment, (self.reading.channels, self.reading.size, self.reading.size), ways)

    @default_modes()
    def adapt(self, images: Tensor, labels: Sequence[str], *, class_weight: ClassWeight = "balanced") -> Classifier:
        """Adapt to new classes: any number of them, any number of images of each.

        Parameters
        ----------
        images:
            uint8 ``(N, C, H, W)``, as :attr:`reading` makes them.
        labels:
            the class of each; classes are put in alphabetical order.
        class_weight:
            how much a class counts in what is adapted. ``"balanced"``: all alike, however many images there are of
            each; else the many decide for the few. ``None``: all images alike. Or numbers by class, of an image of it,
            whose ratios matter; 1 for those that are left out. Nearest class means (``protonet``) know of no weights.

        Raises
        ------
        MetagradError
            for fewer than two classes, weights that cannot be, or more images than fit into one adaptation.
        """
        classes = tuple(sorted(set(labels)))
        if len(classes) < 2:
            raise MetagradError(
                f"there is one class only ({classes[0]}): show at least two" if classes else "no images"
            )
        if len(images) > self.most:
            raise MetagradError(
                f"{len(images)} support images are more than {self.most}: a few of each class do, test on the rest"
            )
        y = torch.tensor([classes.index(label) for label in labels])
        weight = example_weights(y, classes, class_weight)
        ((network, grad_norm),) = self.solved(images[None], y[None], len(classes), weight)
        with torch.inference_mode():
            logits, features = logits_and_features(network, images.float() / 255)
            prototypes = Prototypes.of(features, y, len(classes))
        counts = torch.bincount(y)
        expected = self.calibration.at(len(classes), int(counts.median())) if self.calibration else None
        facts = {
            **self.facts,
            "method": getattr(self.experiment.method, "name", type(self.experiment.method).__name__),
            "trained": f"{self.episodes.ways}-way {self.episodes.shots}-shot",
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
            facts=facts,
        )

    @default_modes()
    def solved(
        self, images: Tensor, y: Tensor, ways: int, weight: Tensor | None = None
    ) -> list[tuple[nn.Module, float]]:
        """Return the networks adapted to T tasks, and the gradient norms that their inner problems are left at.

        Parameters
        ----------
        images, y:
            uint8 ``(T, N, C, H, W)`` and int64 ``(T, N)``, labels below ``ways``.
        weight:
            ``(N,)``, how much each image counts, 1 in the mean; ``None``: all alike.
        """
        method, model = self._built(ways)
        theta = for_ways(self.theta, method.init(model))
        found: list[tuple[nn.Module, float]] = []
        size = max(1, _AT_ONCE * 28**2 // (images.shape[1] * self.reading.size**2))
        for some, labels in zip(images.split(size), y.split(size), strict=True):
            x = some.float() / 255
            with torch.no_grad():
                solution = method.adapt(model, theta, batch_of(x, labels, weight))
                weights = method.weights(model, theta, solution)
            for task, left in enumerate(solution.grad_norm.tolist()):
                found.append((standalone(model, {name: leaf[task] for name, leaf in weights.items()}, x[task]), left))
        return found

    @default_modes()
    def leave_one_out(
        self,
        images: Tensor,
        labels: Sequence[str],
        *,
        class_weight: ClassWeight = "balanced",
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, float] | None:
        """Adapt without one image of each class and classify those, in turn, ten times at most.

        One of *each*: a class that alone lacks an image loses against the others, and the accuracy would come out far
        too low. Where a method adapts the head alone, the features of all images are computed once, with the batch
        statistics of all: these know of no label. Other methods adapt the whole network anew.

        Return the fraction that was right, and of how many; ``None`` where every class has one image.
        """
        classes = sorted(set(labels))
        y, ways = torch.tensor([classes.index(label) for label in labels]), len(classes)
        counts = torch.bincount(y, minlength=ways)
        turn = torch.stack([(y[:index] == y[index]).sum() for index in range(len(y))])  # the how-manieth of its class
        turns = min(_TURNS, int(counts.max()))
        if turns < 2:
            return None
        right = asked = 0
        head = self._head(images, y, ways)
        for done in range(turns):
            out = (turn == done) & (counts[y] > 1)
            rest = ~out
            weight = example_weights(y[rest], classes, class_weight)
            if head is None:
                ((network, _),) = self.solved(images[rest][None], y[rest][None], ways, weight)
                with torch.inference_mode():
                    logits = network(images[out].float() / 255)
            else:
                logits = head.logits(rest, y[rest], out, weight)
            right += int((logits.argmax(-1) == y[out]).sum())
            asked += int(out.sum())
            progress(done + 1, turns)
        return {"accuracy": right / asked, "images": asked}

    def _head(self, images: Tensor, y: Tensor, ways: int) -> _HeadAlone | None:
        """Return the head with the images' features, where the method adapts nothing else."""
        method, model = self._built(ways)
        if not isinstance(method, AdaptsHead | ProtoNet | R2D2):
            return None
        ((network, _),) = self.solved(images[None], y[None], ways)
        with torch.inference_mode():
            features = logits_and_features(network, images.float() / 255)[1]
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
