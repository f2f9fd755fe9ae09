"""Leave-one-out accuracy of an adaptation: leave images out, adapt to the rest, classify those left out."""

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

_TURNS = 10  # most rounds; each leaves one image of each class out


@dataclass(frozen=True)
class LeftOut:
    """Predictions for images that were left out of the adaptation.

    Attributes
    ----------
    numbers:
        indices of the images.
    predicted, labels:
        predicted and true class of each.
    probabilities:
        probability of the predicted class.
    """

    numbers: tuple[int, ...]
    predicted: tuple[str, ...]
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def mistakes(self) -> list[int]:
        """Positions in :attr:`numbers` of the misclassified images."""
        return [place for place, one in enumerate(self.predicted) if one != self.labels[place]]

    def as_json(self) -> dict[str, float]:
        """Return the accuracy and the number of images."""
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
    """A method that adapts only the head, with features computed once."""

    method: AdaptsHead | ProtoNet | R2D2
    model: nn.Module
    theta: Params
    features: Tensor

    @classmethod
    def of(cls, learner: Learner, x: Tensor, y: Tensor, ways: int) -> HeadAlone | None:
        """Return the head with the images' features, or ``None`` if the method adapts more than the head."""
        method, model = learner.built(ways)
        if not isinstance(method, AdaptsHead | ProtoNet | R2D2):
            return None
        ((network, _),) = learner.solved(x[None], y[None], ways)
        with torch.inference_mode():
            features = logits_and_features(network, x)[1]
        path = last_layer(model)
        alone = nn.Sequential(OrderedDict(body=nn.Identity(), head=model.get_submodule(path)))
        theta = {".features": features[0, 0]}  # sets the dtype; no weight has this name
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
    """See :meth:`Learner.leave_one_out`."""
    classes = sorted(set(labels))
    y, ways = torch.tensor([classes.index(label) for label in labels]), len(classes)
    counts = torch.bincount(y, minlength=ways)
    turn = torch.stack([(y[:index] == y[index]).sum() for index in range(len(y))])  # index within its class
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
