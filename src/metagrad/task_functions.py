"""torch's functions as inner problems need them: right for many tasks at once, twice differentiable, not random.

A few of torch's functions are silently wrong under ``vmap``, have no second derivative or a wrong one, or draw random
numbers. Inside :func:`exact` each of them is replaced by a form that is right, whoever calls it: a module of torch's or
a forward pass of the user's own. Everything else runs as it is.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint as recomputing

from metagrad.errors import MetagradError


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Use the forms below for a moment, in this thread; ``torch.utils.checkpoint`` does nothing in any meanwhile."""
    with _passing_through(), _Exact():
        yield


class _Exact(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        form = _FORMS.get(func)
        return (func if form is None else form)(*args, **(kwargs or {}))


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    # Under vmap torch keeps one row of all tasks' tables from learning, where each has one. Here it is cut off.
    if max_norm is not None or scale_grad_by_freq:
        raise MetagradError(
            "an embedding with max_norm writes its weights in the forward pass, and one with scale_grad_by_freq gives "
            "what is no gradient: make it without"
        )
    if padding_idx is not None:
        padding = torch.arange(weight.shape[0], device=weight.device) == padding_idx % weight.shape[0]
        weight = torch.where(padding.unsqueeze(-1), weight.detach(), weight)
    return F.embedding(input, weight)


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    # torch's own has no second derivative.
    if input.dim() != 2:
        raise MetagradError("an embedding bag takes a row of indices for each example, (N, length), and no offsets")
    rows = _embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq)
    counts = torch.ones_like(input) if padding_idx is None else (input != padding_idx % weight.shape[0]).long()
    here = counts.unsqueeze(-1).bool()
    if mode == "max":
        greatest = rows.masked_fill(~here, -torch.inf).max(1).values
        return torch.where(here.any(1), greatest, 0.0)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    total = torch.where(here, rows, 0.0).sum(1)
    return total if mode == "sum" else total / counts.sum(1, keepdim=True).clamp(min=1)


def _attention(*args: Any, **kwargs: Any) -> Tensor:
    # The fused kernels have no second derivative.
    options = {**dict(zip(("dropout_p", "is_causal"), args[4:], strict=False)), **kwargs, "dropout_p": 0.0}
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(*args[:4], **options)


def _multi_head_attention(*args: Any, **kwargs: Any) -> Any:
    forward: Any = F.multi_head_attention_forward
    with sdpa_kernel(SDPBackend.MATH):
        return forward(*args[:10], 0.0, *args[11:], **kwargs)  # the eleventh is dropout


def _recurrent(kernel: Callable[..., Any]) -> Callable[..., Any]:
    def form(*args: Any) -> Any:
        # After the list of weights: whether there are biases, how many layers, the dropout between them.
        at = next(index for index, part in enumerate(args) if isinstance(part, list)) + 3
        with torch.backends.cudnn.flags(enabled=False):  # cuDNN's has no second derivative
            return kernel(*args[:at], 0.0, *args[at + 1 :])

    return form


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    # torch's second derivative takes the norm for a constant.
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    # Tasks cannot write into averages that they share.
    mean, variance = (None, None) if training else (running_mean, running_var)
    return F.batch_norm(input, mean, variance, weight, bias, training, momentum, eps)


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    # torch's own has no second derivative.
    return F.relu6(input + 3) / 6


def _identity(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return input


def _rrelu(input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, *args: Any, **kwargs: Any) -> Tensor:
    return F.leaky_relu(input, (lower + upper) / 2)


def _drawing(function: Callable[..., Any]) -> Callable[..., Any]:
    def form(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("generator") is not None:
            return function(*args, **kwargs)
        raise MetagradError(draws(function.__name__))

    return form


def draws(how: str) -> str:
    """Return the error message for a network that draws random numbers."""
    return (
        f"the network draws random numbers ({how}), but an inner problem must be deterministic: "
        "put that module into eval mode, or pass the numbers in with the inputs"
    )


_DROPOUTS = (
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    torch.dropout, torch.feature_dropout, torch.alpha_dropout, torch.feature_alpha_dropout,
)  # fmt: skip
_RECURRENT = (
    torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu,
)  # fmt: skip
_RANDOM = (
    torch.rand, torch.randn, torch.rand_like, torch.randn_like, torch.randint, torch.randint_like, torch.randperm,
    torch.bernoulli, torch.normal, torch.multinomial, torch.poisson, torch.binomial, F.gumbel_softmax,
    Tensor.bernoulli, Tensor.bernoulli_, Tensor.normal_, Tensor.uniform_, Tensor.exponential_, Tensor.multinomial,
    Tensor.random_, Tensor.geometric_, Tensor.cauchy_, Tensor.log_normal_,
)  # fmt: skip
_FORMS: dict[Any, Callable[..., Any]] = {
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
    F.batch_norm: _batch_norm,
    F.rrelu: _rrelu,
    F.hardsigmoid: _hardsigmoid,
    **({torch._weight_norm: _weight_norm} if hasattr(torch, "_weight_norm") else {}),  # private to torch
    **dict.fromkeys(_DROPOUTS, _identity),  # as in eval mode
    **{kernel: _recurrent(kernel) for kernel in _RECURRENT},
    **{function: _drawing(function) for function in _RANDOM},
}


def _run_once(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Iterator[None]:
    yield


class _RunOnce:
    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


# ``torch.utils.checkpoint`` would run a part again in the backward pass, when the weights are the module's own again.
# What it calls is private to torch, and named otherwise from 2.14 on.
_PASSED_THROUGH = {
    name: form
    for name, form in {
        "_checkpoint_without_reentrant_generator": _run_once,
        "_checkpoint_without_reentrant_generator_impl": _run_once,
        "CheckpointFunction": _RunOnce,
    }.items()
    if hasattr(recomputing, name)
}
_ORIGINALS = {name: getattr(recomputing, name) for name in _PASSED_THROUGH}
_LOCK, _inside = threading.Lock(), 0
_UNKNOWN_CHECKPOINT = (
    f"torch.utils.checkpoint of torch {torch.__version__} computes a part of the network again when the weights are "
    "others, and this metagrad does not know how to pass it through: take the network without it, or another torch"
)


@contextlib.contextmanager
def _passing_through() -> Iterator[None]:
    """Replace what ``torch.utils.checkpoint`` calls, in all threads, while any thread is inside."""
    global _inside
    with _LOCK:
        _inside += 1
        for name, plain in _PASSED_THROUGH.items():
            setattr(recomputing, name, plain)
    try:
        with contextlib.nullcontext() if _passes_through() else _refusing():
            yield
    finally:
        with _LOCK:
            _inside -= 1
            if not _inside:
                for name, own in _ORIGINALS.items():
                    setattr(recomputing, name, own)


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Refuse ``torch.utils.checkpoint`` by refusing the hooks on saved tensors that it works with."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(_UNKNOWN_CHECKPOINT):
            yield
    except RuntimeError as error:
        if _UNKNOWN_CHECKPOINT in str(error):
            raise MetagradError(_UNKNOWN_CHECKPOINT) from error
        raise


@cache
def _passes_through() -> bool:
    """Whether the replacements keep ``torch.utils.checkpoint`` from running a part again, tried out once."""
    calls = []

    def part(x: Tensor) -> Tensor:
        calls.append(x)
        return x * x

    # What is wrapped in it: torch's wrapper imports its compiler, which takes a second.
    checkpoint = getattr(recomputing.checkpoint, "__wrapped__", recomputing.checkpoint)
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.ones(1, device="cpu", requires_grad=True)
        torch.autograd.grad(checkpoint(part, x, use_reentrant=False), x)
    return len(calls) == 1
