"""Convolution of many tasks at once, each with its own weights, as matrix products.

``vmap`` makes one grouped convolution of a convolution per task. torch's kernels for those are near the floor forward,
but four to six times above it backward with respect to the input, and second derivatives loop over the groups. Here a
step is a gather of patches and one batched matrix product, forward and backward, for any order of derivative.

The map is bilinear: with ``y = conv(x, w)``, the other two products of the family are ``gx = spread(gy, w)`` and
``gw = correlate(gy, x)``, and the derivatives of each are the other two. Memory is laid out with channels last:
x ``(T, N, H, W, C)``, w ``(T, F, K, K, C)``, y ``(T, N, H', W', F)``, patches of x ``(T, N·H'·W', K·K·C)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Window:
    """How the kernel moves: ``kernel`` pixels wide and high, ``stride`` apart, over ``padding`` pixels of zeros."""

    kernel: int
    stride: int
    padding: int
    size: tuple[int, int]  # of the image

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of the result."""
        high, wide = ((side + 2 * self.padding - self.kernel) // self.stride + 1 for side in self.size)
        return high, wide


def conv2d(x: Tensor, weight: Tensor, *, stride: int, padding: int) -> Tensor:
    """Convolve ``(T, N, C, H, W)`` with ``(T, F, C, K, K)``, task by task; returns ``(T, N, F, H', W')``.

    Fastest where channels are last in memory, as they are in the result.
    """
    window = Window(weight.shape[-1], stride, padding, (x.shape[3], x.shape[4]))
    return _Conv.apply(x.movedim(2, -1), weight.movedim(2, -1), window, None).movedim(-1, 2)


class _Conv(torch.autograd.Function):
    """``(x, w) -> y``. The patches of x may be given if they are there already; they count as part of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, window: Window, patches: Tensor | None) -> Tensor:
        patches = _patches(x, window) if patches is None else patches
        ctx.save_for_backward(x, w, patches)
        ctx.window = window
        return torch.bmm(patches, w.flatten(2).mT).unflatten(1, (x.shape[1], *window.out))

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, w, patches = ctx.saved_tensors
        gx = _Spread.apply(gy, w, ctx.window) if ctx.needs_input_grad[0] else None
        gw = _Correlate.apply(gy, x, ctx.window, patches) if ctx.needs_input_grad[1] else None
        return gx, gw, None, None


class _Spread(torch.autograd.Function):
    """``(gy, w) -> gx``, each output's gradient spread over the patch it saw."""

    @staticmethod
    def forward(ctx: Any, gy: Tensor, w: Tensor, window: Window) -> Tensor:
        ctx.save_for_backward(gy, w)
        ctx.window = window
        return _overlay(torch.bmm(gy.flatten(1, 3), w.flatten(2)), gy.shape[1], window)

    @staticmethod
    def backward(ctx: Any, hx: Tensor) -> tuple[Tensor | None, ...]:
        gy, w = ctx.saved_tensors
        patches = _patches(hx.detach(), ctx.window)
        hgy = _Conv.apply(hx, w, ctx.window, patches) if ctx.needs_input_grad[0] else None
        hw = _Correlate.apply(gy, hx, ctx.window, patches) if ctx.needs_input_grad[1] else None
        return hgy, hw, None


class _Correlate(torch.autograd.Function):
    """``(gy, x) -> gw``. The patches of x count as part of it."""

    @staticmethod
    def forward(ctx: Any, gy: Tensor, x: Tensor, window: Window, patches: Tensor) -> Tensor:
        ctx.save_for_backward(gy, x, patches)
        ctx.window = window
        return torch.bmm(gy.flatten(1, 3).mT, patches).unflatten(2, (window.kernel, window.kernel, x.shape[-1]))

    @staticmethod
    def backward(ctx: Any, hw: Tensor) -> tuple[Tensor | None, ...]:
        gy, x, patches = ctx.saved_tensors
        hgy = _Conv.apply(x, hw, ctx.window, patches) if ctx.needs_input_grad[0] else None
        hx = _Spread.apply(gy, hw, ctx.window) if ctx.needs_input_grad[1] else None
        return hgy, hx, None, None


def _patches(x: Tensor, window: Window) -> Tensor:
    """Put every patch in a row, copied in runs of K·C numbers."""
    p, (high, wide) = window.padding, window.out
    padded = F.pad(x, (0, 0, p, p, p, p)).contiguous()
    task, image, row, column, channel = padded.stride()
    seen = padded.as_strided(
        (x.shape[0], x.shape[1], high, wide, window.kernel, window.kernel, x.shape[-1]),
        (task, image, row * window.stride, column * window.stride, row, column, channel),
    )
    return seen.reshape(x.shape[0], -1, window.kernel**2 * x.shape[-1])


def _overlay(patches: Tensor, images: int, window: Window) -> Tensor:
    """Add patches back to where they were gathered: the transpose of :func:`_patches`."""
    p, s, (high, wide) = window.padding, window.stride, window.out
    parts = patches.view(patches.shape[0], images, high, wide, window.kernel, window.kernel, -1)
    rows, columns = (side + 2 * p for side in window.size)
    total = patches.new_zeros(patches.shape[0], images, rows, columns, parts.shape[-1])
    for i in range(window.kernel):
        for j in range(window.kernel):
            total[:, :, i : i + s * high : s, j : j + s * wide : s] += parts[:, :, :, :, i, j]
    return total[:, :, p : rows - p, p : columns - p]
