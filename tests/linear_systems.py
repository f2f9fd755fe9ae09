"""Linear systems of known eigenvalues and solutions, for the tests of linear solvers (float64)."""

from typing import NamedTuple

import torch

from metagrad.implicit import GaussNewton, Operator

ONE_TO_FIVE = torch.arange(1.0, 6).double()
SPECTRA = {
    "diagonal": ONE_TO_FIVE.expand(2, 5),
    "identity": torch.ones(2, 5).double(),
    "ill": torch.logspace(0, 6, 5).double().expand(2, 5),
    "batch": torch.stack([ONE_TO_FIVE, torch.ones(5).double(), torch.logspace(0, 1, 5).double()]),
    "zero": ONE_TO_FIVE.expand(2, 5),
    "indefinite": torch.tensor([[-2.0, -1, 1, 2, 3], [-1, 5, 4, 3, 2]]).double(),
    "singular": torch.tensor([[0.0, 1, 2, 3, 4], [0, 0, 1, 4, 5]]).double(),
    "inconsistent": torch.tensor([[0.0, 1, 2, 3, 4], [0, 0, 1, 4, 5]]).double(),
}


class System(NamedTuple):
    """A (T, P, P) = V diag(values) Vᵀ, b, the least-squares solution of least norm, and A as an operator."""

    A: torch.Tensor
    V: torch.Tensor
    values: torch.Tensor
    b: torch.Tensor
    u: torch.Tensor
    operator: Operator


def times(A, v):
    return (A @ v[..., None])[..., 0]


def system(values, generator, rotate=True):
    tasks, size = values.shape
    V = torch.linalg.qr(torch.randn(tasks, size, size, dtype=torch.float64, generator=generator))[0]
    V = V if rotate else torch.eye(size).double().expand(tasks, size, size)
    b = torch.randn(tasks, size, dtype=torch.float64, generator=generator)
    return assembled(V, values, b)


def assembled(V, values, b):
    A = V @ torch.diag_embed(values) @ V.mT
    u = times(V, torch.where(values != 0, times(V.mT, b) / torch.where(values != 0, values, 1.0), 0.0))
    # As a Gauss-Newton matrix: half of the smallest eigenvalue is the shift, the outputs are the eigenvectors' shares.
    shift = values.amin(1, keepdim=True).clamp(min=0).expand_as(values) / 2
    parts = GaussNewton(
        lambda v: times(V.mT, v["x"]), lambda w: {"x": times(V, w)}, lambda w: (values - shift) * w, b.shape
    )
    return System(A, V, values, b, u, Operator(lambda v: {"x": times(A, v["x"])}, {"x": shift}, parts))


def named(name):
    g = torch.Generator().manual_seed(len(name))
    made = system(SPECTRA[name], g, rotate=name != "diagonal")
    if name == "singular":
        made = assembled(made.V, made.values, times(made.A, made.b))
    if name == "zero":
        made = assembled(made.V, made.values, made.b * torch.tensor([[1.0], [0.0]]))
    return made


def check_report(found, made):
    """Compare what a solution says of itself with what is."""
    u, b, tasks = found.value["x"], made.b, len(made.b)
    size = b.norm(dim=1)
    rounding = 1e-14 * (size + made.values.abs().amax(1) * u.norm(dim=1))
    torch.testing.assert_close(found.size, size, rtol=1e-14, atol=0)
    true = (b - times(made.A, u)).norm(dim=1)
    assert ((found.residual * torch.where(size > 0, size, 1.0) - true).abs() <= rounding + 1e-9 * true).all()
    assert (found.min_curvature >= made.values.amin(1) - 1e-13 * made.values.abs().amax(1)).all()
    if found.max_curvature is not None:
        assert (found.max_curvature <= made.values.amax(1) + 1e-13 * made.values.abs().amax(1)).all()
    assert [leaf.shape for leaf in (found.residual, found.steps, found.min_curvature, found.stopped)] == [(tasks,)] * 4
    assert (found.steps.dtype, found.stopped.dtype) == (torch.int64, torch.bool)
