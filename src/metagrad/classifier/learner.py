"""Meta-learned weights of a run, ready to adapt to new classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metagrad.classifier.artifact import Classifier
from metagrad.classifier.calibration import Calibration
from metagrad.classifier.class_weight import ClassWeight, batch_of, example_weights
from metagrad.classifier.left_out import LeftOut, leave_one_out
from metagrad.classifier.linear_probe import LinearProbe
from metagrad.classifier.network import Prototypes, for_ways, logits_and_features, standalone
from metagrad.data import DATASETS, Progress
from metagrad.data.features import features_of_images
from metagrad.data.reading import Reading
from metagrad.errors import MetagradError
from metagrad.experiment.episodes import Episodes, episodes_of
from metagrad.experiment.experiment import Experiment
from metagrad.experiment.pretrained import Pretrained, extractor_of, feature_shape, own_path, trunk_of
from metagrad.experiment.record import versions
from metagrad.experiment.run import Run
from metagrad.experiment.setup import build, learned
from metagrad.fewshot import Algorithm, MemoryReduced
from metagrad.named_code import name_of, require_named
from metagrad.torch_modes import default_modes
from metagrad.tree import Params

_MOST = 2000  # support images of 28 pixels a side in one adaptation; of larger ones as many pixels
_MOST_BYTES = 2**29  # of pictures held in memory while their features are computed
_PHOTOS = Pretrained("efficientnet-lite0", centred=True)
_PRETRAINED = re.compile(r"efficientnet-lite.*|(timm|torchvision|hf):.+|[A-Za-z_][\w.]+:[A-Za-z_][\w.]*")
_AT_ONCE = 640  # images of several tasks adapted to at once, at 28 pixels a side
_UNREAD = 224  # pixels a side of pictures, where none are read
_ANY_WAYS = 2  # weights of a head that was never trained serve any number of classes
# Logistic regression on features of unit length, C = 10 at 25 pictures: chosen in docs/results-diary.md.
ON_FEATURES = MemoryReduced(l2=1e-2)


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
        shape of the trained network's inputs: an image, or the features that a frozen trunk computes from it.
    facts:
        origin of the weights, copied into every classifier.
    calibration:
        result of :func:`metagrad.classifier.calibrate.calibrate`; ``None`` if the run was not calibrated.
    """

    experiment: Experiment
    reading: Reading
    theta: Params
    inputs: tuple[int, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None

    @classmethod
    def of(cls, run: Path | Run, *, calibrated: bool = True, code: Collection[str] = ()) -> Learner:
        """Return the best weights of a run, or a model that comes with metagrad.

        ``glyphs``, a model of drawn characters, comes with metagrad; ``photos`` is a pretrained network for
        photographs, ``efficientnet-lite0``, and any name that :class:`~metagrad.experiment.pretrained.Pretrained` knows
        is such a network, without meta-training. A folder of that name has precedence. For an open run, ``code`` is not
        needed.

        ``calibrated=False`` ignores an existing calibration.

        Raises
        ------
        MetagradError
            if it is not a run, has no validated weights yet, or is a pretrained network whose package or weights are
            missing.
        """
        if not isinstance(run, Run) and not run.exists():
            if _PRETRAINED.fullmatch(run.as_posix()) or str(run) == "photos":
                network = _PHOTOS if str(run) == "photos" else Pretrained(run.as_posix())
                require_named(own_path(network), code)
                found = cls.untrained(network, calibrated=calibrated)
                return replace(found, facts={**found.facts, "run": run.as_posix()})
            if str(run) == "glyphs":
                run = _models() / "glyphs"
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
    def untrained(cls, network: Pretrained, *, method: Algorithm = ON_FEATURES, calibrated: bool = True) -> Learner:
        """Return a pretrained network without meta-training: a task adapts the head on its features.

        ``calibrated=False`` ignores an existing calibration.

        Raises
        ------
        MetagradError
            If its package or its weights are missing, or a part below the head is trainable.

        Examples
        --------
        >>> from metagrad.experiment import Pretrained
        >>> Learner.untrained(Pretrained("efficientnet-lite0")).inputs  # doctest: +SKIP
        (1280,)
        """
        extractor = extractor_of(network) if network.body == "nothing" else None
        if extractor is None:
            raise MetagradError(
                "without training, a pretrained network must have body nothing, so that all of it is frozen"
            )
        measured = _models() / "photos.json"
        known = calibrated and (network, method) == (_PHOTOS, ON_FEATURES) and measured.exists()
        facts = {"run": network.name, "digest": extractor.digest}
        found = cls._as_it_is(network, method, Reading("photograph", extractor.image_size), extractor.shape, facts)
        return replace(found, calibration=Calibration.read(measured)) if known else found

    @classmethod
    def on_rows(cls, network: Pretrained, num_features: int) -> Learner:
        """Return a learner for features that were computed elsewhere: the network itself is not opened.

        It adapts to rows float32 ``(N, num_features)`` (:meth:`adapt_inputs`), and its classifiers take such rows.
        """
        probe, facts = LinearProbe(num_features, scale=network.scale), {"run": network.name, "digest": None}
        return cls._as_it_is(probe, ON_FEATURES, Reading("photograph", _UNREAD), (num_features,), facts)

    @classmethod
    def _as_it_is(
        cls, network: Any, method: Algorithm, reading: Reading, inputs: tuple[int, ...], facts: dict[str, Any]
    ) -> Learner:
        experiment = Experiment(tasks=Episodes("folder"), network=network, method=method)
        built, model = build(experiment, inputs, _ANY_WAYS)
        facts = {**facts, "dataset": None, "step": 0, "val_accuracy": None}
        return cls(experiment, reading, built.init(model), inputs, facts)

    @property
    def most(self) -> int:
        """Largest number of images in one adaptation."""
        pixels = self.reading.size**2
        if self.on_features:  # features are small
            return min(_MOST, _MOST_BYTES // (self.reading.channels * pixels))
        return _MOST * 28**2 // pixels

    @classmethod
    def now(cls, run: Run, theta: Params) -> Learner:
        """Return the current weights of a run that is training.

        Raises
        ------
        MetagradError
            if its tasks are not of pictures.
        """
        if run.dataset is None:
            raise MetagradError(f"{run.folder} was not trained on pictures of a data set: use Run.adapt in Python")
        size = run.inputs[-1] if len(run.inputs) == 3 else _image_size(run.experiment)
        return cls(run.experiment, Reading.of(run.dataset, size), theta, run.inputs)

    @property
    def on_features(self) -> bool:
        """Whether the trained network takes features, which need computing only once a picture."""
        network = self.experiment.network
        return isinstance(network, LinearProbe) or feature_shape(network) is not None

    @property
    def episodes(self) -> Episodes:
        """How the run's tasks are drawn."""
        found = episodes_of(self.experiment.tasks)
        assert found is not None
        return found

    def built(self, ways: int) -> tuple[Any, nn.Module]:
        """Return the method and a network of so many outputs."""
        return build(self.experiment, self.inputs, ways)

    def network_inputs(self, images: Tensor, *, progress: Progress | None = None) -> Tensor:
        """Return the trained network's inputs, float32 ``(N, *inputs)``, for images uint8 ``(N, C, H, W)``.

        For a pretrained network these are features, which are computed once for each picture and cached.
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
                f"{len(images)} support images are more than {self.most}: a few of each class are enough"
            )
        return self.adapt_inputs(self.network_inputs(images), labels, class_weight=class_weight)

    @default_modes()
    def adapt_inputs(self, x: Tensor, labels: Sequence[str], *, class_weight: ClassWeight = "balanced") -> Classifier:
        """Adapt to new classes, from the trained network's inputs.

        Parameters
        ----------
        x:
            float32 ``(N, *inputs)``, as :meth:`network_inputs` returns them.
        labels:
            the class of each; classes are sorted alphabetically.
        class_weight:
            weights of the classes in the support loss. ``"balanced"``: all classes count the same, however many images
            they have. ``None``: all images count the same, so large classes dominate. Or a weight for an image of each
            class, of which only the ratios matter; missing classes have 1. ``protonet`` ignores weights.

        Raises
        ------
        MetagradError
            For fewer than two classes, or weights that cannot be.
        """
        classes = tuple(sorted(set(labels)))
        if len(classes) < 2:
            raise MetagradError(
                f"there is only one class ({classes[0]}): at least two are needed" if classes else "there are no images"
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
            "trained": "{}-way {}-shot".format(*self.episodes.sizes("train")) if self.facts.get("step") else None,
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
            examples=(x, y) if self.on_features else None,
            facts=facts,
        )

    @default_modes()
    def solved(self, x: Tensor, y: Tensor, ways: int, weight: Tensor | None = None) -> list[tuple[nn.Module, float]]:
        """Return the networks adapted to T tasks, and the final gradient norms of their inner problems.

        Parameters
        ----------
        x, y:
            float32 ``(T, N, *inputs)`` and int64 ``(T, N)``, labels below ``ways``.
        weight:
            ``(N,)``, how much each image counts, 1 in the mean; ``None``: all alike.
        """
        method, model = self.built(ways)
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
        """Leave one image of each class out, adapt to the rest and classify those left out; at most ten rounds.

        One of each class in a round: if a single class lacked an image, it would be at a disadvantage, and the accuracy
        far too low. Where a method adapts only the head, the features of all images are computed once, with the batch
        statistics of all, which do not depend on labels. Other methods adapt the whole network in each round.

        Return ``None`` where every class has one image.

        Parameters
        ----------
        x, labels:
            as of :meth:`adapt_inputs`.
        """
        return leave_one_out(self, x, labels, class_weight=class_weight, progress=progress)


def _models() -> Path:
    return Path(str(resources.files("metagrad.classifier") / "models"))


def _image_size(experiment: Experiment) -> int | None:
    """Return the side of the pictures that features are computed of; ``None``: as the data set has them."""
    episodes, extractor = episodes_of(experiment.tasks), extractor_of(experiment.network)
    assert episodes is not None
    if not DATASETS[episodes.dataset].pictures or extractor is None:
        return None
    return episodes.image_size or extractor.image_size
