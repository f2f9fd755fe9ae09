"""Networks of timm, torchvision and transformers, and what these packages know of their images.

The packages are imported when one of their networks is named. Weights that are not on this machine are downloaded by
the package, where there is a network.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from metagrad.errors import MetagradError, MetagradWarning, in_short
from metagrad.fewshot.backbones.network import IMAGENET_MEAN, IMAGENET_STD, Network
from metagrad.fewshot.backbones.weights import shapes_in

T = TypeVar("T")
_PATIENCE = 5.0  # seconds to wait for an answer of a server


def open_timm(name: str, *, weights: Path | None) -> Network:
    """Return ``timm:NAME`` without its classifier, with its own weights unless a file is to fill it.

    Raises
    ------
    MetagradError
        if timm is not installed, has no such network, or its weights cannot be loaded.
    """
    called = name.partition(":")[2]
    timm = _package("timm", name)
    if ":" not in called and not timm.is_model(called.partition(".")[0]):  # hf-hub:... and local-dir:... are timm's own
        raise _unknown(name, called, timm.list_models(), "timm.list_models()")

    def make() -> nn.Module:
        made: nn.Module = timm.create_model(called, pretrained=weights is None, num_classes=0)
        return made

    module = _weighted(name, (lambda: _cache_first(make)) if weights is None else make)
    config = timm.data.resolve_model_data_config(module)
    channels, *sides = config["input_size"]
    if channels != 3 or sides[0] != sides[1]:
        raise MetagradError(f"{name} takes inputs {config['input_size']}: a backbone takes square images of 3 channels")
    return Network(module=module, image_size=sides[0], mean=_three(config["mean"]), std=_three(config["std"]))


def open_torchvision(name: str, *, weights: Path | None) -> Network:
    """Return ``torchvision:NAME`` without its last linear layer, with its own weights unless a file is to fill it.

    Raises
    ------
    MetagradError
        if torchvision is not installed, has no such network, or its weights cannot be loaded.
    """
    called = name.partition(":")[2]
    models = _package("torchvision.models", name)
    known = models.list_models(module=models)
    if called not in known:
        raise _unknown(name, called, known, "torchvision.models.list_models(module=torchvision.models)")
    published = models.get_model_weights(called).DEFAULT
    # These two change the normalisation of their images where they have weights.
    own = {"transform_input": True, "init_weights": False} if called in ("googlenet", "inception_v3") else {}
    module = _weighted(name, lambda: models.get_model(called, weights=None, **own))
    if weights is None:
        module.load_state_dict(_weighted(name, lambda: _downloaded(published.url)))
    linear = [path for path, part in module.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise MetagradError(f"{name} has no last linear layer to take away: choose another network")
    module.set_submodule(linear[-1], nn.Identity())
    shown = published.transforms()
    return Network(module=module, image_size=int(shown.crop_size[0]), mean=_three(shown.mean), std=_three(shown.std))


def open_transformers(name: str, *, weights: Path | None) -> Network:
    """Return ``hf:NAME`` of transformers, its outputs pooled; NAME is a model of the hub, or a folder with one.

    Raises
    ------
    MetagradError
        if transformers is not installed, or the model cannot be loaded or takes no images.
    """
    called = name.partition(":")[2]
    transformers = _package("transformers", name)
    safe = {"trust_remote_code": False}
    # What is missing would be random; what is of another shape, too. Both are looked at here.
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with _quiet(transformers):
        if weights is None:
            read = transformers.AutoModel.from_pretrained
            module, loading = _weighted(name, lambda: _cache_first(lambda: read(called, **safe, **told)))
        else:
            shapes_in(weights)  # refuses a pickle
            reads = transformers.AutoConfig.from_pretrained
            config = _weighted(name, lambda: _cache_first(lambda: reads(called, **safe)))
            made = _weighted(name, lambda: type(transformers.AutoModel.from_config(config, **safe)))
            # It knows the names that files of older versions have.
            given = load_file(weights)
            module, loading = _weighted(
                name, lambda: made.from_pretrained(None, config=config, state_dict=given, **told)
            )
            _refuse_unknown(name, weights, loading["unexpected_keys"])
    source = str(weights) if weights is not None else "its weights"
    missing = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
    if any(not key.startswith("pooler.") for key in missing):
        raise MetagradError(
            f"{source} do not fit {name}: missing or of another shape are {len(missing)} of {len(module.state_dict())} "
            f"tensors ({missing[0]}): name other weights"
        )
    if not all(torch.isfinite(leaf).all() for leaf in module.state_dict().values()):
        raise MetagradError(f"{source}: they hold numbers that are not finite: name other weights")
    module = getattr(module, "vision_model", module)  # of a model of images and texts
    if missing:
        module.pooler = None  # it would have random weights
    size, mean, std = _processor(transformers, name, module.config)
    wrapped = _Pooled(module)
    return Network(module=wrapped, image_size=size, mean=mean, std=std, filled=True)


def _refuse_unknown(name: str, weights: Path, unknown: Iterable[str]) -> None:
    """Warn that a classifier head is skipped; refuse a file with other unknown weights."""
    unknown = sorted(unknown)
    other = [key for key in unknown if not key.partition(".")[0].endswith("classifier")]
    if other:
        raise MetagradError(
            f"{weights} does not fit {name}: it has {len(other)} tensors that are unknown ({other[0]}): "
            "name other weights"
        )
    if unknown:
        warnings.warn(
            f"{weights}: its classifier head is left out: {', '.join(unknown)}", MetagradWarning, stacklevel=5
        )


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers from printing which weights are missing: metagrad does so in one line."""
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


class _Pooled(nn.Module):
    """A model of transformers as one that gives features: pooled by itself, else its class token, else the mean."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.class_token = any(key.rpartition(".")[2] in ("cls_token", "class_embedding") for key in model.state_dict())

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(N, F)``."""
        found = self.model(pixel_values=images)
        pooled: Tensor | None = getattr(found, "pooler_output", None)
        if pooled is None:
            last: Tensor = found.last_hidden_state
            if last.dim() == 4:
                return last.mean((2, 3))
            return last[:, 0] if self.class_token else last.mean(1)
        return pooled.flatten(1)


def _processor(transformers: Any, name: str, config: Any) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Return image size, mean and standard deviation for values 0 to 1, as the model's image processor has them."""
    called = name.partition(":")[2]
    try:
        said = _cache_first(
            lambda: transformers.AutoImageProcessor.from_pretrained(called, trust_remote_code=False)
        ).to_dict()
    except Exception:  # a folder may hold the model alone
        size = getattr(config, "image_size", 224)
        size = size if isinstance(size, int) else 224
        warnings.warn(
            f"{name} has no image processor: using {size} pixels, and ImageNet's mean and standard deviation",
            MetagradWarning, stacklevel=4,
        )  # fmt: skip
        return size, IMAGENET_MEAN, IMAGENET_STD
    sizes = said.get("crop_size") if said.get("do_center_crop") else None
    sizes = sizes or said.get("size") or {}
    side = sizes if isinstance(sizes, int) else sizes.get("height") or sizes.get("shortest_edge") or 224
    # The processor's own scale, then (x - mean) / std: the same for values 0 to 1.
    scale = 255 * said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 255.0
    mean, std = _three([0, 0, 0]), _three([1, 1, 1])
    if said.get("do_normalize", True):
        mean, std = _three(said.get("image_mean") or IMAGENET_MEAN), _three(said.get("image_std") or IMAGENET_STD)
    return int(side), tuple(one / scale for one in mean), tuple(one / scale for one in std)


def _package(package: str, name: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        missing = (error.name or package).partition(".")[0]
        raise MetagradError(f"{name} needs the package {missing}: pip install {missing}") from error
    except Exception as error:  # one that was made for another torch
        raise MetagradError(
            f"{name}: {package.partition('.')[0]} cannot be imported ({type(error).__name__}: {in_short(error, 80)}): "
            f"install the version of it that is made for torch {torch.__version__}"
        ) from error


def _unknown(name: str, called: str, known: Sequence[str], listed: str) -> MetagradError:
    near = difflib.get_close_matches(called, known, n=3)
    return MetagradError(
        f"there is no {name}" + (f", but {', '.join(near)}" if near else "") + f": {listed} has all names"
    )


def _weighted(name: str, make: Callable[[], T]) -> T:
    """Return what a package makes; whatever it raises becomes one line."""
    try:
        return make()
    except MetagradError:
        raise
    except Exception as error:
        raise MetagradError(
            f"{name} could not be loaded ({type(error).__name__}: {in_short(error, 120)}): check the spelling, connect "
            "to the internet, or give a safetensors file of its weights (weights=)"
        ) from error


def _cache_first(make: Callable[[], T]) -> T:
    """Return what the hub's library finds in its cache; ask the hub only if it answers, as it tries for long."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        return make()
    except Exception:
        if offline or not _answers(constants.ENDPOINT):
            raise
    finally:
        constants.HF_HUB_OFFLINE = offline
    return make()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_PATIENCE):
            return True
    except urllib.error.HTTPError:  # an answer, too
        return True
    except (OSError, ValueError):
        return False


def _downloaded(address: str) -> dict[str, Tensor]:
    """Return published weights of torchvision, without running what is in the file; its name ends with its digest."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / address.rpartition("/")[2]
    if file.exists():
        with file.open("rb") as opened:
            if not hashlib.file_digest(opened, "sha256").hexdigest().startswith(file.stem.rpartition("-")[2]):
                raise MetagradError(f"{file} is damaged or was altered: delete it, and it is downloaded again")
    elif not _answers(address):
        raise MetagradError(
            f"{address} cannot be reached: connect to the internet, put that file into {file.parent}, or give a "
            "safetensors file of the weights (weights=)"
        )
    found: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
        address, map_location="cpu", check_hash=True, weights_only=True
    )
    return found


def _three(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(one) for one in values)
