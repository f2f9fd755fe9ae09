"""The last line of ``metagrad check`` says whether to worry, from the numbers above it."""

import pytest

from metagrad.cli.check import describe, verdict

FOUND = {
    "tasks": 4, "step": 6000, "against": "the best solution found, float64", "cosine": 0.498, "error": 0.89,
    "length": 0.32, "inner": 0.86, "linear": 0.0026, "curvature": 0.11, "arithmetic": 5.2e-7, "grad_norm": 0.28,
    "residual": 0.011, "matrix": "gauss_newton", "precision": "float32", "reference_grad_norm": 0.0052,
    "reference_min_curvature": 0.1, "inner_lr": 0.4, "stable_inner_lr": 0.5,
}  # fmt: skip
UNROLLED = {
    "tasks": 4,
    "step": 10,
    "against": "the same steps unrolled, float64",
    "length": 0.9,
    "precision": "float32",
}


@pytest.mark.parametrize(
    ("more", "verdict_of", "why"),
    [
        ({}, "Usual", "--inner-steps"),
        ({"inner": 0.1, "linear": 0.8}, "Usual", "--cg-steps"),
        ({"inner": 0.1, "curvature": 0.8}, "Usual", "--curvature hessian"),
        ({"inner": 0.1, "arithmetic": 0.8, "precision": "bf16"}, "Usual", "--precision float32"),
        ({"error": 0.05, "cosine": 0.999}, "Good", "0.05"),
        ({"cosine": -0.2}, "Worry", "direction"),
        ({"cosine": float("nan"), "error": float("nan")}, "Worry", "direction"),
        ({"residual": 2.0}, "Worry", "mostly noise; use a larger --lam or more --cg-steps"),
        (
            {"residual": 2.0, "cosine": 0.85},
            "Worry",
            "though its direction is usable (cosine 0.85); use a larger --lam",
        ),
        ({"residual": 2.0, "matrix": "hessian"}, "Worry", "use --curvature gauss_newton, a larger --lam"),
        ({"stable_inner_lr": 0.3}, "Worry", "oscillate"),
        ({"stable_inner_lr": None}, "Usual", "--inner-steps"),
        ({"reference_grad_norm": 0.2, "inner": None}, "Undecided", "no usable reference"),
        ({"reference_min_curvature": -0.1}, "Undecided", "no minimum"),
        ({"reference_grad_norm": 0.2, "inner": None, "residual": 2.0}, "Worry", "linear solve fails"),
    ],
)
def test_the_verdict_follows_from_the_numbers(more, verdict_of, why):
    last = describe({**FOUND, **more})[-1]
    assert last.startswith(f"{verdict_of}: ")
    assert why in last


def test_methods_without_a_linear_system_have_a_verdict_too():
    assert verdict({**UNROLLED, "cosine": 1.0, "error": 1e-6}).startswith("Good: ")
    assert "by design" in verdict({**UNROLLED, "cosine": 0.7, "error": 0.7})
    assert verdict({**UNROLLED, "cosine": -0.1, "error": 1.1}).startswith("Worry: ")
    assert len(describe({**UNROLLED, "cosine": 1.0, "error": 1e-6})) == 3
