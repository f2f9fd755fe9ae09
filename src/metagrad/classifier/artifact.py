"""A classifier in one file: an ordinary network, its class names, and how pictures are read for it.

The file is in the safetensors format. Its metadata hold one JSON text: names, reading, network, protocol, the run it
came from, and a digest of all this and of the weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from metagrad import tensorfile
from metagrad.classifier.linear_probe import LinearProbe
from metagrad.classifier.network import Prototypes, feature_length, fused, logits_and_features, standalone
from metagrad.data.reading import FILL, Kind, Reading
from metagrad.errors import MetagradError, in_short
from metagrad.experiment.checkpoint import require_like
from metagrad.experiment.networks import build_network
from metagrad.experiment.pretrained import feature_shape, own_path, trunk_digest, trunk_of
from metagrad.experiment.record import LARGEST_IMAGE
from metagrad.experiment.values import from_json, paths_in, to_json
from metagrad.files import require_readable, require_text
from metagrad.named_code import NotNamedError, require_named
from metagrad.strict_json import is_number
from metagrad.torch_modes import default_modes

FORMAT = 3
_BATCH = 64  # images at once, of 84 pixels a side: enough for two cores, little memory


@dataclass(frozen=True)
class Classifier:
    """An adapted network that labels pictures, each by itself.

    Attributes
    ----------
    network:
        In evaluation mode. Takes images float32 ``(N, C, H, W)`` in [0, 1], or the features that ``trunk`` gives of
        them; returns logits ``(N, classes)``.
    classes:
        their names, in the order of the logits.
    reading:
        how a picture file becomes an image.
    network_config:
        what the network is built from.
    prototypes:
        where the classes lie among the features.
    temperature:
        divisor of the logits before the softmax; 1 if it was not fitted.
    ood_threshold:
        OOD score above which a picture counts as unknown; ``None`` if it was not fitted.
    trunk:
        The frozen part of a pretrained network: images to features. ``None`` where the network takes images.
    examples:
        For a network on features: the support examples, features ``(N, F)`` and class numbers ``(N,)``, so that more
        can be added later. Otherwise ``None``.
    facts:
        protocol, parent run, accuracy of the adaptation; JSON.
    """

    network: nn.Module
    classes: tuple[str, ...]
    reading: Reading
    network_config: Any
    prototypes: Prototypes
    temperature: float = 1.0
    ood_threshold: float | None = None
    trunk: nn.Module | None = None
    examples: tuple[Tensor, Tensor] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @default_modes()
    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities ``(N, classes)`` and OOD scores ``(N,)`` of images uint8 ``(N, C, H, W)``.

        A picture's OOD (out-of-distribution) score is the distance of its features from the nearest class's prototype,
        in units of the mean distance between prototypes.
        """
        most = max(1, min(_BATCH, _BATCH * 84**2 // self.reading.size**2))
        with torch.inference_mode():
            parts = [self.classify_inputs(self.network_inputs(part)) for part in images.split(most)]
        return torch.cat([one for one, _ in parts]), torch.cat([one for _, one in parts])

    def network_inputs(self, images: Tensor) -> Tensor:
        """Return the inputs of :attr:`network` for images uint8 ``(N, C, H, W)``.

        Raises
        ------
        MetagradError
            As :meth:`require_pictures` does.
        """
        self.require_pictures()
        x = images.float() / 255
        if self.trunk is None:
            return x.contiguous(memory_format=torch.channels_last)
        features: Tensor = self.trunk(x)
        return features

    def require_pictures(self) -> None:
        """Refuse a classifier of features whose network is not known.

        Raises
        ------
        MetagradError
            If this is one.
        """
        if isinstance(self.network_config, LinearProbe):
            raise MetagradError(
                f"the model was adapted to rows of {self.network_config.num_features} features, not to pictures: adapt "
                "again to pictures"
            )

    @default_modes()
    def classify_inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the result of :meth:`classify` for inputs of :attr:`network`."""
        with torch.inference_mode():
            logits, features = logits_and_features(self._fused, x)
            return (logits / self.temperature).softmax(-1), self.prototypes.ood_score(features)

    @cached_property
    def _fused(self) -> nn.Module:
        return fused(self.network)

    def save(self, path: str | Path) -> None:
        """Write the file in one step.

        Raises
        ------
        MetagradError
            if it cannot be written.
        """
        path = Path(path)
        require_text(path)
        tensors = {f"network/{name}": leaf for name, leaf in self.network.state_dict().items()}
        tensors["prototypes"] = self.prototypes.means
        if self.examples is not None:
            tensors["examples"], tensors["example_classes"] = self.examples
        facts = {
            "format": FORMAT,
            "classes": list(self.classes),
            "reading": dataclasses.asdict(self.reading),
            "network": to_json(self.network_config),
            "temperature": self.temperature,
            "ood_threshold": self.ood_threshold,
            "spread": self.prototypes.spread,
            "cosine": self.prototypes.cosine,
            "trunk": None if self.trunk is None else trunk_digest(self.network_config),
            "facts": self.facts,
        }
        if not all(bool(leaf.isfinite().all()) for leaf in tensors.values()):
            raise MetagradError(f"{path} would contain NaN or infinite numbers: adapt with another run")
        tensorfile.write(
            path,
            tensors,
            facts,
            key="metagrad",
            refused=lambda e: MetagradError(f"cannot write {path} ({e.strerror or e}): choose another --out"),
            follow=True,
        )

    @classmethod
    def load(cls, path: Path, *, code: Collection[str] = ()) -> Classifier:
        """Read a file that :meth:`save` wrote.

        Parameters
        ----------
        code:
            import path outside of metagrad that the network may be built by.

        Raises
        ------
        MetagradError
            if it is no such file, is cut off or altered, or was written by another version.
        """
        require_text(path)
        require_readable(path, missing="metagrad adapt writes such a file, my.model for example")
        again = "adapt again with metagrad adapt"
        try:
            stored = tensorfile.read(path, key="metagrad")
        except (OSError, ValueError, MemoryError) as error:
            raise MetagradError(
                f"{path} is not a model of metagrad adapt, or was altered ({in_short(error)}): {again}"
            ) from error
        try:
            if stored.digest is None:
                raise ValueError("it has no digest")
            facts, tensors = _of_today(stored.facts, stored.tensors)
            require_named(paths_in(facts.get("network")), code)
            network_config = _of_format1(facts) if facts["format"] == 1 else from_json(facts["network"], code=code)
            require_named(own_path(network_config), code)
            trunk = None if facts["trunk"] is None else _trunk(network_config)  # may lack a package
            return cls._of(facts, tensors, network_config, trunk)
        except (NotNamedError, MissingTrunkError):  # what to do is another thing
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, MetagradError) as error:
            raise MetagradError(
                f"{path} is damaged, or was written by another version of metagrad ({in_short(error)}): {again}"
            ) from error

    @classmethod
    def _of(
        cls, facts: dict[str, Any], tensors: dict[str, Tensor], network_config: Any, trunk: nn.Module | None
    ) -> Classifier:
        """Return the classifier that a file's facts and tensors describe."""
        if trunk is not None and trunk_digest(network_config) != facts["trunk"]:
            raise MissingTrunkError(
                f"the model was adapted with other weights of {network_config.name} than those installed: adapt "
                "again with metagrad adapt"
            )
        reading, classes = Reading(**facts["reading"]), tuple(facts["classes"])
        shape = feature_shape(network_config)
        if (shape is None) != (trunk is None):
            raise ValueError("invalid trunk")
        probe = (network_config.num_features,) if isinstance(network_config, LinearProbe) else None
        inputs = shape or probe or (reading.channels, reading.size, reading.size)
        examples = _sound_examples(tensors, inputs, len(classes))
        return cls(
            _rebuilt(network_config, inputs, len(classes), tensors),
            classes,
            reading,
            network_config,
            Prototypes(tensors["prototypes"], facts["spread"], facts["cosine"]),
            temperature=facts["temperature"],
            ood_threshold=facts["ood_threshold"],
            trunk=trunk,
            examples=examples,
            facts=facts["facts"],
        )


class MissingTrunkError(MetagradError):
    """The pretrained network of a model file is missing, or has other weights."""


def _trunk(network_config: Any) -> nn.Module:
    """Return the frozen part of the network that a model file names.

    Raises
    ------
    MissingTrunkError
        If it is missing.
    """
    try:
        trunk = trunk_of(network_config)
    except MetagradError as error:
        raise MissingTrunkError(str(error)) from error
    if trunk is None:
        raise ValueError("its network has no frozen part")
    return trunk


def _sound_examples(tensors: dict[str, Tensor], inputs: tuple[int, ...], ways: int) -> tuple[Tensor, Tensor] | None:
    """Remove the support examples from a file's tensors and return them.

    Raises
    ------
    ValueError
        If features and classes do not belong together.
    """
    if "examples" not in tensors and "example_classes" not in tensors:
        return None
    x, y = tensors.pop("examples"), tensors.pop("example_classes")
    if x.dtype != torch.float32 or x.shape[1:] != inputs or not bool(x.isfinite().all()):
        raise ValueError("invalid examples")
    if y.dtype != torch.int64 or y.shape != x.shape[:1] or y.unique().tolist() != list(range(ways)):
        raise ValueError("invalid example_classes")
    return x, y


def _require_sound(facts: dict[str, Any]) -> None:
    """Refuse invalid facts.

    Raises
    ------
    ValueError
        naming the first.
    """
    classes, reading = facts["classes"], facts["reading"]
    sound = {
        "classes": isinstance(classes, list) and len(classes) > 1 and all(isinstance(name, str) for name in classes),
        "temperature": is_number(facts["temperature"]) and 1e-6 < facts["temperature"] < 1e6,
        "ood_threshold": facts["ood_threshold"] is None
        or (is_number(facts["ood_threshold"]) and 0 <= facts["ood_threshold"] < math.inf),
        "spread": is_number(facts["spread"]) and 0 <= facts["spread"] < math.inf,
        "reading": reading["kind"] in get_args(Kind)
        and type(reading["size"]) is int
        and 0 < reading["size"] <= LARGEST_IMAGE
        and is_number(fill := reading.get("fill", FILL))  # older files have none
        and 0 < fill <= 1,
        "cosine": isinstance(facts["cosine"], bool),
        "trunk": facts["trunk"] is None or isinstance(facts["trunk"], str),
        "facts": isinstance(facts["facts"], dict),
    }
    wrong = [name for name, right in sound.items() if not right]
    if wrong or len(set(classes)) < len(classes):
        raise ValueError(f"invalid {wrong[0] if wrong else 'classes'}")


def _of_today(facts: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the contents of a file of any supported format, with the names of the current format.

    Raises
    ------
    ValueError
        For another format, or invalid facts.
    """
    if type(facts["format"]) is not int or not 1 <= facts["format"] <= FORMAT:
        raise ValueError(f"it has format {in_short(facts['format'])}, this metagrad reads 1 to {FORMAT}")
    facts, tensors = dict(facts), dict(tensors)
    if facts["format"] < 3:
        facts["ood_threshold"], facts["trunk"], facts["cosine"] = facts.pop("strange"), None, False
        tensors["prototypes"] = tensors.pop("landmarks")
    _require_sound(facts)
    return facts, tensors


def _of_format1(facts: dict[str, Any]) -> Any:
    """Return what builds the network of a file that metagrad 0.1 wrote."""
    from metagrad.experiment.config import TrainConfig
    from metagrad.experiment.format1 import network_of

    return network_of(TrainConfig(**facts["config"]).typed())


def _rebuilt(network_config: Any, inputs: tuple[int, ...], ways: int, tensors: dict[str, Tensor]) -> nn.Module:
    """Return the network with its weights; names, shapes and types are compared before any memory is taken."""
    with torch.device("meta"):
        empty = standalone(build_network(network_config, inputs, ways), {})
        length = feature_length(empty, inputs)
    wanted = {f"network/{name}": leaf for name, leaf in empty.state_dict().items()}
    wanted["prototypes"] = torch.empty(ways, length, device="meta")
    if wanted.keys() != tensors.keys():
        raise ValueError(f"{min(wanted.keys() ^ tensors.keys())} is missing, or one too many")
    for name, leaf in tensors.items():
        require_like(name, leaf, wanted[name])
    network = standalone(build_network(network_config, inputs, ways), {})
    for name, leaf in network.state_dict().items():  # as load_state_dict does, for weights that ask for no gradient
        leaf.copy_(tensors[f"network/{name}"])
    return network
