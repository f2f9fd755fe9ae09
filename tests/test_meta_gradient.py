"""Chunks: an execution detail that memory follows and results do not; memory that runs out."""

import gc
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from metagrad import GradientDescent, Implicit
from metagrad.errors import MetagradError
from metagrad.fewshot import FOMAML, IMAML, MAML, MLP, Batch, Chunks, Conv4, Tasks, meta_gradient
from metagrad.fewshot.chunks import auto_chunks


def drawn(tasks=5, queries=3, size=14):
    g = torch.Generator().manual_seed(0)

    def batch(per_class):
        x = torch.rand(tasks, 3 * per_class, 1, size, size, generator=g, dtype=torch.float64)
        return Batch(x, torch.arange(3).repeat_interleave(per_class).expand(tasks, -1))

    return Tasks(batch(1), batch(queries))


def network(kind="conv4"):
    g = torch.Generator().manual_seed(1)
    if kind == "mlp":
        return MLP((14 * 14, 16, 3), activation=nn.Tanh, generator=g).double()
    return Conv4(3, filters=9, image_size=14, generator=g).double()


def gradient(algorithm, chunk, tasks=None, kind="conv4"):
    model = network(kind)
    theta = algorithm.init(model)
    metrics = meta_gradient(algorithm, model, theta, tasks or drawn(), chunk=chunk)
    return torch.cat([leaf.grad.flatten() for leaf in theta.values()]), metrics


THREE = GradientDescent(lr=0.1, max_steps=3)
ALGORITHMS = [
    IMAML(solver=THREE),
    IMAML(solver=THREE, adjoint=Implicit()),
    MAML(inner_steps=2),
    FOMAML(inner_steps=2),
]
CHUNKS = [1, 2, Chunks(5, 1), Chunks(3, 2), Chunks(2, 100), Chunks(100, 100), 100]


@pytest.mark.parametrize("kind", ["conv4", "mlp"])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=["gauss-newton", "hessian", "maml", "fomaml"])
def test_chunks_of_each_phase_change_nothing(algorithm, kind):
    """Chunk 1 is a Python loop over tasks; a chunk larger than the tasks is all of them."""
    expected, whole = gradient(algorithm, 5, kind=kind)
    for chunk in CHUNKS:
        found, metrics = gradient(algorithm, chunk, kind=kind)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(metrics.accuracy, whole.accuracy)
        torch.testing.assert_close(metrics.grad_norm, whole.grad_norm)
        assert metrics.loss.item() == pytest.approx(whole.loss.item(), rel=1e-12)


@pytest.mark.parametrize("chunk", [0, -1])
def test_impossible_chunks_are_refused(chunk):
    with pytest.raises(ValueError, match="at least 1"):
        gradient(FOMAML(), chunk)


def test_automatic_chunks_shrink_with_the_images():
    small, large = (auto_chunks(drawn(tasks=12, size=size)) for size in (14, 84))
    assert small.tasks > large.tasks >= 1
    assert small.query > large.query >= 1


class Limited(FOMAML):
    """First-order MAML on a machine whose memory holds ``FITS`` tasks."""

    FITS = 2
    tried: list[int]

    def adapt(self, model, theta, support):
        self.tried.append(len(support.x))
        if len(support.x) > self.FITS:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried ...")
        return super().adapt(model, theta, support)


def test_memory_that_runs_out_halves_the_chunk_and_says_so():
    expected, _ = gradient(FOMAML(inner_steps=2), 5)
    algorithm = Limited(inner_steps=2)
    object.__setattr__(algorithm, "tried", [])
    with pytest.warns(UserWarning, match="out of memory with 5 tasks at a time: continuing with 2 "):
        found, metrics = gradient(algorithm, 5)
    assert algorithm.tried == [5, 2, 2, 1]
    assert metrics.chunks == Chunks(2, 2)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_halving_twice_is_said_once():
    algorithm = Limited(inner_steps=2)
    object.__setattr__(algorithm, "tried", [])
    with pytest.warns(UserWarning, match="out of memory with 8 tasks at a time: continuing with 2 ") as said:
        gradient(algorithm, 8, drawn(tasks=8))
    assert len(said) == 1
    assert algorithm.tried == [8, 4, 2, 2, 2, 2]


def test_one_task_too_large_says_what_would_fit():
    algorithm = Limited(inner_steps=2)
    object.__setattr__(algorithm, "tried", [])
    Limited.FITS = 0
    try:
        with pytest.raises(MetagradError, match="one task does not fit into memory: take"):
            gradient(algorithm, 5)
    finally:
        Limited.FITS = 2


def test_other_errors_pass_through():
    class Broken(FOMAML):
        def adapt(self, model, theta, support):
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        gradient(Broken(), 5)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=["gauss-newton", "hessian", "maml", "fomaml"])
def test_nothing_of_a_meta_step_stays_behind(algorithm):
    """Without the garbage collector's help: a graph that refers to itself is not even within its reach."""
    model, tasks = network(), drawn()
    theta = algorithm.init(model)
    counts = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(4):
            meta_gradient(algorithm, model, theta, tasks)
            counts.append(sum(type(thing) in (torch.Tensor, nn.Parameter) for thing in gc.get_objects()))
    finally:
        gc.enable()
    assert counts[-1] == counts[1]


def test_a_methods_own_predict_is_what_is_scored_and_theta_in_it_is_differentiated():
    """Scores scaled by a number in theta: its gradient comes through predict alone; a frozen one gets none."""

    class Scaled(FOMAML):
        def init(self, model):
            return {**super().init(model), "scale": torch.tensor(1.5, dtype=torch.float64, requires_grad=True)}

        def adapt(self, model, theta, support):
            return super().adapt(model, {name: leaf for name, leaf in theta.items() if name != "scale"}, support)

        def predict(self, model, theta, solution, x):
            return theta["scale"] * super().predict(model, theta, solution, x)

    model, algorithm, tasks = network(), Scaled(inner_steps=2), drawn()
    theta = algorithm.init(model)

    def loss(shift):
        fresh = {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}
        fresh["scale"] = (theta["scale"].detach() + shift).requires_grad_()
        return meta_gradient(algorithm, model, fresh, tasks, chunk=Chunks(3, 2)).loss.item()

    meta_gradient(algorithm, model, theta, tasks, chunk=Chunks(3, 2))
    found, step = theta["scale"].grad.item(), 1e-5
    assert found == pytest.approx((loss(step) - loss(-step)) / (2 * step), rel=1e-7)
    frozen = {name: leaf.detach().requires_grad_(name != "scale") for name, leaf in theta.items()}
    meta_gradient(algorithm, model, frozen, tasks)
    assert frozen["scale"].grad is None


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_stated_bounds_do_not_depend_on_chunks(chunk):
    _, whole = gradient(IMAML(solver=THREE), 5)
    _, parts = gradient(IMAML(solver=THREE), chunk)
    torch.testing.assert_close(parts.delta.value, whole.delta.value, rtol=1e-6, atol=0)
    torch.testing.assert_close(parts.delta_prime.value, whole.delta_prime.value, rtol=1e-6, atol=0)
    assert parts.delta_prime.certain
    assert not parts.delta.certain


def test_what_autograd_returns_is_not_written_to():
    """The gradient of a sum is one number seen many times: written to, it would be wrong or refused."""

    @dataclass(frozen=True, kw_only=True)
    class WithOffset(FOMAML):
        def init(self, model):
            return {**super().init(model), ".offsets": torch.zeros(3, requires_grad=True)}

        def adapt(self, model, theta, support):
            return super().adapt(model, {k: v for k, v in theta.items() if k != ".offsets"}, support)

        def predict(self, model, theta, solution, x):
            out = super().predict(model, theta, solution, x)
            return torch.cat([out[..., :1] + theta[".offsets"].sum(), out[..., 1:]], -1)

    generator = torch.Generator().manual_seed(0)
    model = MLP((4, 6, 3), generator=generator)
    batch = Batch(torch.randn(2, 6, 4, generator=generator), torch.arange(3).repeat(2, 2))
    method = WithOffset()
    theta = method.init(model)
    meta_gradient(method, model, theta, Tasks(batch, batch))
    shares = method.predict(model, theta, method.adapt(model, theta, batch), batch.x).softmax(-1)[..., 0]
    wanted = (shares - (batch.y == 0).float()).mean()
    torch.testing.assert_close(theta[".offsets"].grad, wanted.detach().expand(3), rtol=1e-4, atol=1e-6)
