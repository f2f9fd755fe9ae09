"""How well an adaptation does, told by its own images: leave some out, adapt to the rest, classify those."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from metagrad.classifier.class_weight import ClassWeight, batch_of, example_weights
from metagrad.classifier.network import for_ways, logits_and_features
from metagrad.fewshot import R2D2, ProtoNet
from metagrad.fewshot.algorithms.heads import AdaptsHead
from metagrad.fewshot.head import last_layer
from metagrad.tree import Params

if TYPE_CHECKING:
    from metagrad.classifier.learner import Learner

_TURNS = 10  # at most so many times one image of each class is left out


@dataclass(frozen=True)
class LeftOut:
    """What became of images that were left out of the adaptation in turn.

    Attributes
    ----------
    numbers:
        which images, by their places among all.
    predicted, labels:
        the class that each was taken for, and its own.
    probabilities:
        of the class that each was taken for.
    """

    numbers: tuple[int, ...]
    predicted: tuple[str, ...]
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def mistakes(self) -> list[int]:
        """Places in :attr:`numbers` of the images that were taken for another class."""
        return [place for place, one in enumerate(self.predicted) if one != self.labels[place]]

    def as_json(self) -> dict[str, float]:
        """Return the fraction that was right, and of how many."""
        count = len(self.numbers)
        return {"accuracy": 1 - len(self.mistakes) / count, "images": count}

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the accuracy: Wilson 1927."""
        count, right, z2 = len(self.numbers), len(self.numbers) - len(self.mistakes), 1.96**2
        middle = (right + z2 / 2) / (count + z2)
        half = 1.96 / (count + z2) * math.sqrt(right * (count - right) / count + z2 / 4)
        return middle - half, middle + half


@dataclass(frozen=True)
class HeadAlone:
    """A method on features that were computed once."""

    method: AdaptsHead | ProtoNet | R2D2
    model: nn.Module
    theta: Params
    features: Tensor

    @classmethod
    def of(cls, learner: Learner, x: Tensor, y: Tensor, ways: int) -> HeadAlone | None:
        """Return the head with the images' features, where the method adapts nothing else."""
        method, model = learner.built(ways)
        if not isinstance(method, AdaptsHead | ProtoNet | R2D2):
            return None
        ((network, _),) = learner.solved(x[None], y[None], ways)
        with torch.inference_mode():
            features = logits_and_features(network, x)[1]
        path = last_layer(model)
        alone = nn.Sequential(OrderedDict(body=nn.Identity(), head=model.get_submodule(path)))
        theta = {".features": features[0, 0]}  # of these digits; a name that is no weight
        for name, leaf in for_ways(learner.theta, method.init(model)).items():
            if name.startswith("."):
                theta[name] = leaf
            elif name.startswith(f"{path}."):
                theta[name.replace(path, "head", 1)] = leaf
        return cls(replace(method, head="head.*"), alone, theta, features)

    def logits(self, learned: Tensor, y: Tensor, asked: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the logits of the images ``asked``, adapted to those ``learned`` and their labels."""
        with torch.no_grad():
            solution = self.method.adapt(
                self.model, self.theta, batch_of(self.features[learned][None], y[None], weight)
            )
            return self.method.predict(self.model, self.theta, solution, self.features[asked][None])[0]


def leave_one_out(
    learner: Learner,
    x: Tensor,
    labels: Sequence[str],
    *,
    class_weight: ClassWeight,
    progress: Callable[[int, int], None],
) -> LeftOut | None:
    """Do what :meth:`Learner.leave_one_out` says."""
    classes = sorted(set(labels))
    y, ways = torch.tensor([classes.index(label) for label in labels]), len(classes)
    counts = torch.bincount(y, minlength=ways)
    turn = torch.stack([(y[:index] == y[index]).sum() for index in range(len(y))])  # the how-manieth of its class
    turns = min(_TURNS, int(counts.max()))
    if turns < 2:
        return None
    found = learner.calibration
    temperature = 1.0 if found is None else found.at(ways, int(counts.median())).temperature
    numbers, predicted, sure = [], [], []
    head = HeadAlone.of(learner, x, y, ways)
    for done in range(turns):
        out = (turn == done) & (counts[y] > 1)
        rest = ~out
        weight = example_weights(y[rest], classes, class_weight)
        if head is None:
            ((network, _),) = learner.solved(x[rest][None], y[rest][None], ways, weight)
            with torch.inference_mode():
                logits = network(x[out])
        else:
            logits = head.logits(rest, y[rest], out, weight)
        numbers += out.nonzero().flatten().tolist()
        best, way = (logits / temperature).softmax(-1).max(-1)
        predicted += [classes[number] for number in way.tolist()]
        sure += best.tolist()
        progress(done + 1, turns)
    return LeftOut(tuple(numbers), tuple(predicted), tuple(labels[number] for number in numbers), tuple(sure))
