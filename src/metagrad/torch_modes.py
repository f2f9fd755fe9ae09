"""Global settings of torch that a caller may have changed, and which of them apply to our work.

Modes that torch keeps for a thread (gradients on or off, inference mode, autocast, a default device) and the default
dtype change what the same lines compute. Each context manager here sets some of them aside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from metagrad import tree


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Record gradients, whatever the caller has switched off: for work whose result is a gradient.

    An autocast that is active still reaches the network, but not its memory of cast weights: that would hand out
    weights from before an update in place.
    """
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Record nothing, but leave inference mode, in which the inner problems could not be differentiated."""
    with recording(), torch.no_grad():
        yield


@contextlib.contextmanager
def default_modes() -> Iterator[None]:
    """Use the modes of a process that has just started: the CPU as default device, no autocast.

    For work that has settings of its own, such as a run. The default dtype is one for all threads, so it is not touched
    here: see :func:`in_float32`.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(recording())
        for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            stack.enter_context(full_digits(kind))
        if torch.empty(0).device.type != "cpu":  # only then: torch asks a default device at every call
            stack.enter_context(torch.device("cpu"))
        yield


@contextlib.contextmanager
def in_float32() -> Iterator[None]:
    """Make modules of float32 for a moment, whatever torch's default dtype is."""
    before = torch.get_default_dtype()
    if before == torch.float32:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def full_digits(kind: str) -> Iterator[None]:
    """Compute on this kind of device with the digits that tensors have, also under autocast."""
    if not torch.is_autocast_enabled(kind):
        yield
        return
    with torch.autocast(kind, enabled=False):
        yield


def ordinary(part: Any) -> Any:
    """Return a nest of tensors in which those made in inference mode are copied, so that autograd takes them.

    Raises
    ------
    ValueError
        if one of them asks for a gradient, which it could never get.
    """
    inference = [leaf for leaf in pytree.tree_leaves(part) if isinstance(leaf, Tensor) and leaf.is_inference()]
    if any(leaf.requires_grad for leaf in inference):
        raise ValueError(
            "a tensor that requires a gradient was made inside torch.inference_mode(), so it cannot get one: make "
            "theta and other learned tensors outside of it"
        )
    return tree.map_tensors(lambda leaf: leaf.clone() if leaf.is_inference() else leaf, part) if inference else part


def require_no_transform(what: str, tensors: Iterable[Tensor] = ()) -> None:
    """Raise ``ValueError`` inside a transform of ``torch.func``, or on tensors of one: ``what`` has no rule for it."""
    if _transform() is not None or any(map(_is_batched, tensors)):
        raise ValueError(
            f"{what} does not go with torch.func (grad, vjp, jacrev, jvp, vmap and the like) or vectorize=True: give "
            "several problems a task axis, and differentiate with plain autograd (torch.autograd.grad, .backward())"
        )


# Private to torch; without them the transforms' own errors come through.
_transform = getattr(torch._C._functorch, "peek_interpreter_stack", lambda: None)
_is_batched = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda tensor: False)


def require_no_tangents(what: str, tensors: Iterable[Tensor]) -> None:
    """Raise ``ValueError`` for tensors that carry a forward-mode derivative, which would be lost."""
    if any(forward_ad.unpack_dual(leaf).tangent is not None for leaf in tensors if leaf.is_floating_point()):
        raise ValueError(
            f"{what} has no forward mode: differentiate with plain autograd (torch.autograd.grad, .backward()), or use "
            "Unroll()"
        )
