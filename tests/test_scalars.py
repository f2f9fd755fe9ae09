"""A hyper-parameter is a number of Python's or of NumPy's, and what is stored is Python's; a bool is none."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import optim

from metagrad import (
    CG,
    LBFGS,
    MINRES,
    Adam,
    Dense,
    FirstOrder,
    FixedPoint,
    GradientDescent,
    HessianFree,
    Implicit,
    Nesterov,
    Neumann,
    Proximal,
    TorchOptimizer,
    Unroll,
    Woodbury,
    argmin,
)

half, three = np.float32(0.5), np.int64(3)
MADE = [
    (GradientDescent, {"lr": half, "max_steps": three, "tol": half, "momentum": half}),
    (GradientDescent, {"lr": np.int32(1), "max_steps": np.uint8(3), "line_search": True}),
    (Nesterov, {"lr": half, "max_steps": three, "tol": half, "convexity": half}),
    (Adam, {"lr": half, "max_steps": three, "betas": (half, np.float64(0.25)), "eps": half}),
    (LBFGS, {"max_steps": three, "tol": half, "history": three}),
    (HessianFree, {"max_steps": three, "tol": half, "cg_steps": three, "damping": half}),
    (TorchOptimizer, {"factory": lambda leaves: optim.SGD(leaves, lr=0.5), "max_steps": three, "tol": half}),
    (CG, {"max_steps": three, "tol": half, "damping": half}),
    (MINRES, {"max_steps": three, "tol": half, "damping": half}),
    (FixedPoint, {"lr": half, "max_steps": three, "tol": half}),
    (Neumann, {"terms": three, "lr": half}),
    (Dense, {"max_size": three}),
    (Woodbury, {"max_size": three}),
    (Proximal, {"lam": half}),
    (Unroll, {"truncate": three}),
    (Unroll, {"checkpoint": three}),
]
NAMES = [made.__name__ for made, _ in MADE]
NUMBERS = [
    (made, fields, name) for made, fields in MADE for name, value in fields.items() if isinstance(value, np.generic)
]


@pytest.mark.parametrize(("made", "fields"), MADE, ids=NAMES)
def test_numpy_numbers_are_kept_as_pythons(made, fields):
    kept = {field.name: getattr(made(**fields), field.name) for field in dataclasses.fields(made)}
    for name, value in fields.items():
        if isinstance(value, np.generic | tuple):
            assert np.array_equal(kept[name], value)
            assert "numpy" not in str([type(part) for part in np.atleast_1d(np.array(kept[name], dtype=object))])
            json.dumps(kept[name])


@pytest.mark.parametrize(("made", "fields", "name"), NUMBERS, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("bad", [True, np.True_, "1", torch.tensor(1), float("nan"), -1])
def test_what_is_no_number_is_refused_by_name(made, fields, name, bad):
    with pytest.raises(ValueError, match=f"^{name} must"):
        made(**{**fields, name: bad})


@pytest.mark.parametrize("name", ["max_steps", "cg_steps"])
def test_a_count_is_whole(name):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got 2.5"):
        HessianFree(**{"max_steps": 3, name: 2.5})


@pytest.mark.parametrize(("made", "fields"), MADE[:7], ids=NAMES[:7])
def test_a_solver_made_of_numpys_numbers_takes_the_same_steps(made, fields):
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in fields.items()}
    y = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    extra = {"curvature": "hessian"} if made is HessianFree else {}

    def end(fields):
        return argmin(lambda phi, theta, data: (phi["w"] - data).square().sum() / 4, {"w": torch.zeros_like(y)}, {}, y,
                      solver=made(**fields, **extra), adjoint=FirstOrder()).value["w"]  # fmt: skip

    assert torch.equal(end(fields), end(plain))


def test_a_linear_solver_inside_an_adjoint_keeps_pythons_numbers():
    assert Implicit(linear_solver=CG(max_steps=three)).linear_solver.max_steps == 3
