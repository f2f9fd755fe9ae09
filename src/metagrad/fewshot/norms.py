"""Batch normalisation: ours, torch's, and which of them use the statistics of the batch at hand.

torch's own norms are exact here: what we differentiate is a vmapped value, by ``autograd.grad``, any number of times
(only ``vmap(grad)`` differentiated from outside would be wrong). But a batch norm that trains writes running averages,
which many tasks at once cannot share: it normalises by the batch at hand and leaves them as they are. One in eval mode
is the fixed map that it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm

# Not public; without it a spectral norm that trains is refused, since it writes its buffers.
_SPECTRAL = getattr(nn.utils.parametrizations, "_SpectralNorm", ())

# The attribute in which admit stores what it measured.
MEASURED_TRANSDUCTIVE = "_metagrad_transductive"


class Diagonal(nn.Module):
    """Multiply each feature by a weight of its own; all weights begin at one.

    Parameters
    ----------
    num_features:
        Length of the feature vectors.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Return features ``(N, F)``."""
        return x * self.weight


class UnitLength(nn.Module):
    """Bring feature vectors to one length.

    Parameters
    ----------
    scale:
        That length.
    centre:
        ``(F,)``, subtracted from features of length one before they are brought to ``scale``; ``None``: nothing is.
        Features of all photographs have a direction in common, which tells none of them apart.
    """

    centre: Tensor | None

    def __init__(self, scale: float, centre: Tensor | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("centre", centre)

    def forward(self, x: Tensor) -> Tensor:
        """Return features ``(N, F)``, each of length ``scale``."""
        if self.centre is not None:
            x = nn.functional.normalize(x, dim=-1) - self.centre
        return self.scale * nn.functional.normalize(x, dim=-1)


class BatchNorm(nn.Module):
    """Batch normalisation with the statistics of the batch at hand, always (no running averages).

    A batch here is one task's support or query images, so predictions on a query set depend on the whole set: the
    network is transductive (:func:`is_transductive`). Input ``(N, C, *)``, any number of trailing axes.

    Parameters
    ----------
    channels:
        C.
    eps:
        added to the variance.
    affine:
        whether a scale and a shift per channel are learned (``weight``, ``bias``).
    """

    def __init__(self, channels: int, *, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.channels, self.eps = channels, eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel over the batch and the trailing axes."""
        # Not torch.var_mean: on CPU it took 28 % of a whole meta-gradient, these two means a third of that.
        axes = [0, *range(2, x.dim())]
        centred = x - x.mean(axes, keepdim=True)
        scale = torch.rsqrt(centred.square().mean(axes, keepdim=True) + self.eps)
        one_a_channel = -1, *[1] * (x.dim() - 2)
        if self.weight is not None:  # folded before it meets the large tensor
            scale = scale * self.weight.view(one_a_channel)
        return centred * scale if self.bias is None else centred * scale + self.bias.view(one_a_channel)

    def extra_repr(self) -> str:
        """Describe the layer in a printed model."""
        return f"{self.channels}, eps={self.eps}, affine={self.weight is not None}"


def uses_batch_statistics(module: nn.Module) -> bool:
    """Whether a module is a batch norm that normalises by the batch at hand: one of torch's in eval mode does not."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.training or module.running_mean is None
    return isinstance(module, BatchNorm)


def keeps_averages(module: nn.Module) -> bool:
    """Whether a module is a batch norm of torch's that would write running averages."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.running_mean is not None


@contextlib.contextmanager
def stateless(model: nn.Module) -> Iterator[None]:
    """Let torch's norms write nothing for a moment, or nothing that stays.

    Those that train go by the numbers at hand alone; a spectral norm takes the singular vectors that it holds, as in
    eval mode.
    """
    kept: list[tuple[nn.Module, str, Tensor | None]] = []
    training: list[nn.Module] = []
    computed: list[tuple[nn.Module, str, Tensor]] = []
    for module in model.modules():
        hooks = module._forward_pre_hooks.values() if module._forward_pre_hooks else ()
        if hooks:  # those of weight_norm and spectral_norm leave the weight that they computed in the module
            computed += [(module, key, leaf) for key, leaf in vars(module).items() if isinstance(leaf, Tensor)]
        if not module.training:
            continue
        if isinstance(module, nn.modules.batchnorm._NormBase):
            kept += [(module, name, buffer) for name, buffer in module._buffers.items()]
        elif isinstance(module, _SPECTRAL) or any(isinstance(hook, SpectralNorm) for hook in hooks):
            training.append(module)
    try:
        for module, name, _ in kept:
            module._buffers[name] = None
        for module in training:
            module.training = False
        yield
    finally:
        for module, name, buffer in kept:
            module._buffers[name] = buffer
        for module in training:
            module.training = True
        for module, name, leaf in computed:
            vars(module)[name] = leaf


def is_transductive(model: nn.Module) -> bool:
    """Whether a prediction depends on the other images predicted with it.

    Known of batch norms; measured by :func:`metagrad.fewshot.admit`, for other modules.
    """
    measured = getattr(model, MEASURED_TRANSDUCTIVE, False)
    return measured or any(uses_batch_statistics(module) for module in model.modules())
