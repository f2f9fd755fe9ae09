"""Convolution of many tasks at once, each with its own weights: matrix products, or a convolution a task.

``vmap`` makes one grouped convolution of a convolution per task. torch's kernels for those are near the floor forward,
but four to six times above it backward with respect to the input, and second derivatives loop over the groups. Here
small tasks share a step: it gathers patches and takes one batched matrix product. Large tasks take torch's own
convolution in turn (:mod:`metagrad.fewshot.convolution_by_task`). Both serve forward and backward, for any order of
derivative.

The map is bilinear: with ``y = conv(x, w)``, its derivatives are ``gx = input_grad(gy, w)`` and
``gw = weight_grad(gy, x)``, and the derivatives of each of the three are the other two. Channels are last in memory:
x ``(T, N, H, W, C)``, w ``(T, F, K, K, C)``, y ``(T, N, H', W', F)``, patches of x ``(T, N·H'·W', K·K·C)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metagrad.fewshot import convolution_by_task as by_task
from metagrad.fewshot.convolution_by_task import Window
from metagrad.fewshot.used_gradients import needs_input_grad


def conv2d(x: Tensor, weight: Tensor, window: Window) -> Tensor:
    """Convolve ``(T, N, C, H, W)`` with ``(T, F, C, K, K)``, task by task; returns ``(T, N, F, H', W')``.

    Fastest where channels are last in memory, as they are in the result.
    """
    return _Conv.apply(x.movedim(2, -1), weight.movedim(2, -1), window, None).movedim(-1, 2)


class PatchStatistics(NamedTuple):
    """The patches of images that need no gradient, as a convolution and a batch norm after it use them.

    Attributes
    ----------
    patches:
        ``(T, n, K·K·C + 1)``, every patch less the mean patch of its task, then a one.
    covariance:
        ``(T, K·K·C, K·K·C)``, over the n patches, in float64.
    """

    patches: Tensor
    covariance: Tensor


def patch_statistics(x: Tensor, window: Window) -> PatchStatistics:
    """Gather what :func:`normalised_conv2d` needs of ``x``, ``(T, N, C, H, W)``."""
    patches = _patches(x.movedim(2, -1), window)
    patches -= patches.mean(1, keepdim=True)
    exact = patches.double()
    covariance = torch.bmm(exact.mT, exact) / exact.shape[1]
    return PatchStatistics(torch.cat([patches, torch.ones_like(patches[..., :1])], -1), covariance)


def normalised_conv2d(images: PatchStatistics, weight: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """Convolve and normalise over the batch in one matrix product; returns ``(T, n, F)``.

    A convolution is linear, so mean and variance of its outputs follow from those of the patches, ``wᵀ cov w``, and
    the normalisation from scaling the kernels: nothing passes over the outputs, forward or backward. That pays where
    patches are narrow, as on images. The variance is computed in float64: where kernels cancel most of a
    patch, float32 would lose it.
    """
    rows = weight.movedim(2, -1).flatten(2)
    exact = rows.double()
    variance = (torch.bmm(exact, images.covariance) * exact).sum(-1)
    scale = gamma * torch.rsqrt(variance + eps).to(gamma.dtype)
    kernels = torch.cat([rows * scale.unsqueeze(-1), beta.unsqueeze(-1)], -1)
    return torch.bmm(images.patches, kernels.mT)


class _Conv(torch.autograd.Function):
    """``(x, w) -> y``. The patches of x may be given if they are there already; they count as part of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, window: Window, patches: Tensor | None) -> Tensor:
        ctx.window = window
        if by_task.pays(x, w, window):
            ctx.save_for_backward(x, w, None)
            return by_task.forward(x, w, window)
        patches = _patches(x, window) if patches is None else patches
        ctx.save_for_backward(x, w, patches)
        return torch.bmm(patches, w.flatten(2).mT).unflatten(1, (x.shape[1], *window.out))

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, w, patches = ctx.saved_tensors
        needed = needs_input_grad(ctx)
        gx = _InputGrad.apply(gy, w, ctx.window) if needed[0] else None
        gw = _WeightGrad.apply(gy, x, ctx.window, patches) if needed[1] else None
        return gx, gw, None, None


class _InputGrad(torch.autograd.Function):
    """``(gy, w) -> gx``, each output's gradient added over its patch."""

    @staticmethod
    def forward(ctx: Any, gy: Tensor, w: Tensor, window: Window) -> Tensor:
        ctx.save_for_backward(gy, w)
        ctx.window = window
        if by_task.pays(gy, w, window):
            return by_task.input_grad(gy, w, window)
        gx = gy.new_empty(*gy.shape[:2], *window.size, w.shape[-1])
        return _overlay(torch.bmm(gy.flatten(1, 3), w.flatten(2)), window, gx)

    @staticmethod
    def backward(ctx: Any, hx: Tensor) -> tuple[Tensor | None, ...]:
        gy, w = ctx.saved_tensors
        needed = needs_input_grad(ctx)
        patches = None if by_task.pays(hx, w, ctx.window) else _patches(hx.detach(), ctx.window)
        hgy = _Conv.apply(hx, w, ctx.window, patches) if needed[0] else None
        hw = _WeightGrad.apply(gy, hx, ctx.window, patches) if needed[1] else None
        return hgy, hw, None


class _WeightGrad(torch.autograd.Function):
    """``(gy, x) -> gw``. The patches of x count as part of it; without them torch's own convolutions serve."""

    @staticmethod
    def forward(ctx: Any, gy: Tensor, x: Tensor, window: Window, patches: Tensor | None) -> Tensor:
        ctx.save_for_backward(gy, x, patches)
        ctx.window = window
        if patches is None:
            return by_task.weight_grad(gy, x, window)
        return torch.bmm(gy.flatten(1, 3).mT, patches).unflatten(2, (window.kernel, window.kernel, x.shape[-1]))

    @staticmethod
    def backward(ctx: Any, hw: Tensor) -> tuple[Tensor | None, ...]:
        gy, x, patches = ctx.saved_tensors
        needed = needs_input_grad(ctx)
        hgy = _Conv.apply(x, hw, ctx.window, patches) if needed[0] else None
        hx = _InputGrad.apply(gy, hw, ctx.window) if needed[1] else None
        return hgy, hx, None, None


def _patches(x: Tensor, window: Window) -> Tensor:
    """Put every patch in a row, copied in runs of K·C numbers."""
    padded = _padded(x, window.padding)
    high, wide = window.out
    task, image, row, column, channel = padded.stride()
    windows = padded.as_strided(
        (x.shape[0], x.shape[1], high, wide, window.kernel, window.kernel, x.shape[-1]),
        (task, image, row * window.stride, column * window.stride, row, column, channel),
    )
    return windows.reshape(x.shape[0], -1, window.kernel**2 * x.shape[-1])


def _padded(x: Tensor, p: int) -> Tensor:
    """Frame every image with p pixels of zeros; unlike ``F.pad``, write each number once."""
    if not p:
        return x.contiguous()
    tasks, images, high, wide, channels = x.shape
    framed = x.new_empty(tasks, images, high + 2 * p, wide + 2 * p, channels)
    for edge in (framed[:, :, :p], framed[:, :, -p:], framed[:, :, p:-p, :p], framed[:, :, p:-p, -p:]):
        edge.zero_()
    framed[:, :, p:-p, p:-p] = x
    return framed


def _overlay(patches: Tensor, window: Window, total: Tensor) -> Tensor:
    """Add patches back to where they were gathered, the transpose of :func:`_patches`; write and return ``total``.

    A kernel's row i meets image rows of one class modulo the stride only. In each class one row of the kernel is
    written and the others are added: nothing is filled with zeros first and nothing is cut off after.
    """
    parts = patches.view(*total.shape[:2], *window.out, window.kernel, window.kernel, total.shape[-1])
    classes = [_classes(window, axis) for axis in (0, 1)]
    for row_class, rows in enumerate(classes[0]):
        for column_class, columns in enumerate(classes[1]):
            part = total[:, :, row_class :: window.stride, column_class :: window.stride]
            if not (rows and columns and rows[0].whole and columns[0].whole):
                part.zero_()
            for r in rows:
                for c in columns:
                    gradient = parts[:, :, r.source, c.source, r.kernel, c.kernel]
                    if r is rows[0] and c is columns[0] and r.whole and c.whole:
                        part.copy_(gradient)
                    else:
                        part[:, :, r.target, c.target] += gradient
    return total


@dataclass(frozen=True)
class _Line:
    """Where one row (or column) of the kernel falls: outputs ``source`` onto pixels ``target`` of its class."""

    kernel: int
    source: slice
    target: slice
    whole: bool  # every pixel of the class


@lru_cache
def _classes(window: Window, axis: int) -> list[list[_Line]]:
    """For each class of pixels modulo the stride, the kernel's lines that fall on it; one that covers it all first."""
    stride, count = window.stride, window.out[axis]
    classes: list[list[_Line]] = []
    for remainder in range(stride):
        pixels = len(range(remainder, window.size[axis], stride))
        lines = []
        for k in range(window.kernel):
            shift, other = divmod(k - window.padding - remainder, stride)  # output a falls on pixel a + shift
            first, last = max(0, -shift), min(count, pixels - shift)
            if not other and first < last:
                target = slice(first + shift, last + shift)
                lines.append(_Line(k, slice(first, last), target, last - first == pixels))
        classes.append(sorted(lines, key=lambda line: not line.whole))
    return classes
