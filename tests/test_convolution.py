"""Convolution of many tasks at once: patches and products, or torch's own convolution a task, give the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metagrad.fewshot import convolution, convolution_by_task
from metagrad.fewshot.convolution import Window, conv2d

WINDOWS = [Window(3, 2, 1, (14, 14)), Window(3, 1, 1, (9, 7)), Window(1, 1, 0, (5, 5)), Window(5, 3, 2, (11, 8))]


def drawn(window: Window, *, dtype: torch.dtype, tasks: int = 3, images: int = 4, channels: int = 6, filters: int = 5):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tasks, images, channels, *window.size, generator=generator, dtype=torch.float64)
    w = torch.randn(tasks, filters, channels, window.kernel, window.kernel, generator=generator, dtype=torch.float64)
    return x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_()


def derivatives(x: Tensor, w: Tensor, convolve) -> list[Tensor]:
    """Return the result, gradients of the sum of its squares, and those of these with random weights."""
    y = convolve(x, w)
    first = torch.autograd.grad(y.square().sum(), (x, w), create_graph=True)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(g.shape, generator=generator, dtype=torch.float64).to(g.dtype) for g in first]
    second = torch.autograd.grad(first, (x, w), weights)
    return [y.detach(), *(g.detach() for g in first), *second]


def task_by_task(window: Window):
    def convolve(x: Tensor, w: Tensor) -> Tensor:
        pairs = zip(x, w, strict=True)
        return torch.stack([torch.conv2d(a, b, None, window.stride, window.padding) for a, b in pairs])

    return convolve


@pytest.mark.parametrize("enough", [0.0, float("inf")], ids=["by task", "patches"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_both_routes_are_torchs_convolution_to_the_second_derivative(window, enough, monkeypatch):
    monkeypatch.setattr(convolution_by_task, "_ENOUGH", enough)
    expected = derivatives(*drawn(window, dtype=torch.float64), task_by_task(window))
    found = derivatives(*drawn(window, dtype=torch.float32), lambda x, w: conv2d(x, w, window))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=3e-6 * float(other.abs().max()))


def test_double_precision_is_exact():
    window = WINDOWS[0]
    expected = derivatives(*drawn(window, dtype=torch.float64), task_by_task(window))
    found = derivatives(*drawn(window, dtype=torch.float64), lambda x, w: conv2d(x, w, window))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_large_tasks_gather_no_patches(monkeypatch):
    window = Window(3, 1, 1, (14, 14))
    x, w = drawn(window, dtype=torch.float32, tasks=2, images=75, channels=64, filters=64)
    if not convolution_by_task.pays(x, w.movedim(2, -1), window):
        pytest.skip("this machine has many threads or no oneDNN")

    def gathered(*_: object) -> Tensor:
        raise AssertionError("patches are nine times as large as the images")

    monkeypatch.setattr(convolution, "_patches", gathered)
    derivatives(x, w, lambda x, w: conv2d(x, w, window))


def test_only_large_tasks_in_single_precision_are_convolved_in_turn():
    window = Window(3, 2, 1, (14, 14))
    x, w = drawn(window, dtype=torch.float32, tasks=2, images=5, channels=64, filters=64)
    assert not convolution_by_task.pays(x, w, window)
    x, w = drawn(window, dtype=torch.float64, tasks=2, images=200, channels=64, filters=64)
    assert not convolution_by_task.pays(x, w, window)


@pytest.mark.parametrize(("forward", "backward"), [(0.0, float("inf")), (float("inf"), 0.0)])
def test_the_number_of_threads_may_change_between_forward_and_backward(forward, backward, monkeypatch):
    window = WINDOWS[0]
    x, w = drawn(window, dtype=torch.float32)
    monkeypatch.setattr(convolution_by_task, "_ENOUGH", forward)
    y = conv2d(x, w, window)
    monkeypatch.setattr(convolution_by_task, "_ENOUGH", backward)
    first = torch.autograd.grad(y.square().sum(), (x, w), create_graph=True)
    monkeypatch.setattr(convolution_by_task, "_ENOUGH", forward)
    found = torch.autograd.grad(sum(g.square().sum() for g in first), (x, w))
    x, w = drawn(window, dtype=torch.float64)
    first = torch.autograd.grad(task_by_task(window)(x, w).square().sum(), (x, w), create_graph=True)
    expected = torch.autograd.grad(sum(g.square().sum() for g in first), (x, w))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=3e-6 * float(other.abs().max()))
