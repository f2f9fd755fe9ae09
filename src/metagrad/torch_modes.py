"""What a caller may have set for all of torch, and what of it reaches us.

Modes that torch keeps for a thread (gradients on or off, inference mode, autocast, a default device) and the default
dtype change what the same lines compute. Each of these says which of them a piece of work does not take over.
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
    """Record gradients, whatever the caller has switched off: for work that is there to give one.

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
    """Do as a process that has just started does: float32 networks on the CPU unless told otherwise, no autocast.

    For what has settings of its own, such as a run. The default dtype is one for all threads, so it is not touched
    here: see :func:`in_float32`.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(recording())
        for kind in {"cpu", _accelerator()}:
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
    made_there = any(isinstance(leaf, Tensor) and leaf.is_inference() for leaf in pytree.tree_leaves(part))
    return tree.map_tensors(_ordinary, part) if made_there else part


def _ordinary(leaf: Tensor) -> Tensor:
    if not leaf.is_inference():
        return leaf
    if leaf.requires_grad:
        raise ValueError(
            "a tensor that asks for a gradient was made inside torch.inference_mode(), and can get none: make theta "
            "and what else is learned outside of it"
        )
    return leaf.clone()


def _accelerator() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def require_no_transform(what: str, tensors: Iterable[Tensor] = ()) -> None:
    """Refuse to run inside a transform of ``torch.func``, or on tensors of one, which does not go through ``what``.

    Raises
    ------
    ValueError
        naming the way out.
    """
    if _transform() is not None or any(map(_is_batched, tensors)):
        raise ValueError(
            f"{what} does not go with torch.func (grad, vjp, jacrev, jvp, vmap and the like) or vectorize=True: give "
            "several problems a task axis, and differentiate with plain autograd (torch.autograd.grad, .backward())"
        )


# Private to torch; without them the transforms' own errors come through.
_transform = getattr(torch._C._functorch, "peek_interpreter_stack", lambda: None)
_is_batched = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda tensor: False)


def require_no_tangents(what: str, tensors: Iterable[Tensor]) -> None:
    """Refuse tensors that carry a derivative of forward mode, which would be lost without a word.

    Raises
    ------
    ValueError
        naming the way out.
    """
    if any(forward_ad.unpack_dual(leaf).tangent is not None for leaf in tensors if leaf.is_floating_point()):
        raise ValueError(
            f"{what} has no forward mode: differentiate with plain autograd (torch.autograd.grad, .backward()), or use "
            "Unroll()"
        )
