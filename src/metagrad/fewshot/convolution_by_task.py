"""Convolution of one task after the other by torch's own kernels, and its two derivatives.

They gather no patches, so that nothing nine times as large as the images is written and read. Each call costs some
twenty microseconds, which pays where a task has arithmetic enough. Measured on 2 cores, 64 channels of 14×14 pixels,
3×3 kernels: 75 images a task are 2.5 times as fast as patches and a batched product, 5 images with stride 2 are no
faster. Layouts are those of :mod:`metagrad.fewshot.convolution`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

_ENOUGH = 2e7  # floating-point operations of a task for each thread


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


def pays(images: Tensor, w: Tensor, window: Window) -> bool:
    """Say whether these functions are the faster ones for ``images``, ``(T, N, ...)``, and ``w``, ``(T, F, K, K, C)``.

    Only in float32 on a CPU with oneDNN: torch's kernels for float64 are slow, and on a GPU few large products are
    better than many small ones.
    """
    if images.device.type != "cpu" or images.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return False
    high, wide = window.out
    flops = 2 * images.shape[1] * high * wide * w[0].numel()
    return flops >= _ENOUGH * torch.get_num_threads()


def forward(x: Tensor, w: Tensor, window: Window) -> Tensor:
    """Return y, ``(T, N, H', W', F)``."""
    y = x.new_empty(*x.shape[:2], *window.out, w.shape[1])
    for one, image, kernel in zip(_planes(y), _planes(x), _planes(w), strict=True):
        one.copy_(torch.conv2d(image, kernel, None, window.stride, window.padding))
    return y


def input_grad(gy: Tensor, w: Tensor, window: Window) -> Tensor:
    """Return gx, ``(T, N, H, W, C)``."""
    gx = gy.new_empty(*gy.shape[:2], *window.size, w.shape[-1])
    for one, gradient, kernel in zip(_planes(gx), _planes(gy), _planes(w), strict=True):
        one.copy_(conv2d_input(one.shape, kernel, gradient, window.stride, window.padding))
    return gx


def weight_grad(gy: Tensor, x: Tensor, window: Window) -> Tensor:
    """Return gw, ``(T, F, K, K, C)``."""
    gw = gy.new_empty(len(gy), gy.shape[-1], window.kernel, window.kernel, x.shape[-1])
    for one, gradient, image in zip(_planes(gw), _planes(gy), _planes(x), strict=True):
        one.copy_(conv2d_weight(image, one.shape, gradient, window.stride, window.padding))
    return gw


def _planes(images: Tensor) -> tuple[Tensor, ...]:
    """Return each task's images or kernels as torch's convolutions take them, channels second, without a copy."""
    return images.movedim(-1, 2).unbind()
