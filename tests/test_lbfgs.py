"""L-BFGS: the inverse Hessian that its pairs describe is the one written out as a matrix (float64)."""

import pytest
import torch

from metagrad import LBFGS, FirstOrder, argmin
from metagrad.implicit.solvers.lbfgs import _Pairs

T, P = 3, 6


def randn(*shape, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def written_out(pairs):
    """Return one task's inverse Hessian by the update of Broyden, Fletcher, Goldfarb and Shanno, from γ I."""
    good = [(s, y) for s, y in pairs if s @ y > 0]
    eye = torch.eye(P, dtype=torch.float64)
    H = eye if not good else eye * (good[-1][0] @ good[-1][1]) / (good[-1][1] @ good[-1][1])
    for s, y in good:
        V = eye - torch.outer(y, s) / (s @ y)
        H = V.T @ H @ V + torch.outer(s, s) / (s @ y)
    return H


@pytest.mark.parametrize("history", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6, 7, 11])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_the_pairs_describe_the_matrix(history, count, scale):
    """Also once old pairs are forgotten, and where a pair of some task is left out."""
    curvature = randn(T, P, P, seed=0)
    curvature = curvature @ curvature.mT + torch.eye(P, dtype=torch.float64)
    pairs, added = _Pairs(randn(T, P, seed=1), history), []
    for number in range(count):
        s = scale * randn(T, P, seed=10 + number)
        y = (curvature @ s[..., None])[..., 0]
        y[number % T] *= -1 if number % 2 else 1  # curvature that is not positive
        pairs.add(s, y)
        added.append((s, y))
    g = randn(T, P, seed=99)
    found = pairs.inverse(g)
    for task in range(T):
        kept = [(s[task], y[task]) for s, y in added[-history:]]
        if kept and not any(s @ y > 0 for s, y in kept):
            continue  # then the length is that of an older pair, and nothing else is known
        torch.testing.assert_close(found[task], written_out(kept) @ g[task], rtol=1e-9, atol=1e-12)


def test_fewer_digits_are_enough_to_run():
    target = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.bfloat16)
    found = argmin(lambda w, theta, data: (w - data).square().sum(), torch.zeros_like(target), {}, target,
                   solver=LBFGS(max_steps=12), adjoint=FirstOrder())  # fmt: skip
    assert torch.equal(found.value, target)


@pytest.mark.parametrize("layout", [lambda leaf: leaf, lambda leaf: leaf.to(memory_format=torch.channels_last)])
def test_tensors_of_any_layout_are_laid_end_to_end(layout):
    """Two tensors, one with channels last; many tasks take the steps of each alone."""
    target = [layout(randn(T, 2, 3, 3, seed=0)), randn(T, 4, seed=1)]

    def objective(phi, theta, data):
        a, b = (x - y for x, y in zip(phi, data, strict=True))
        return a.square().sum() + 3 * b.square().sum() + 0.1 * (a.sum() - b.sum()) ** 4

    start = [torch.zeros_like(leaf) for leaf in target]  # laid as the target is
    how = {"solver": LBFGS(max_steps=60, tol=1e-12), "adjoint": FirstOrder()}
    together = argmin(objective, start, {}, target, **how)
    assert together.grad_norm.max() <= 1e-12
    for task in range(T):
        alone = argmin(objective, [x[task] for x in start], {}, [x[task] for x in target], batched=False, **how)
        for a, b in zip(together.value, alone.value, strict=True):
            torch.testing.assert_close(a[task], b, rtol=1e-9, atol=1e-11)
