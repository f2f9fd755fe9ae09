"""Warnings and errors of a run that diverges or stops learning: each once, with the option to change."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import nn

from metagrad.distributed import Ranks
from metagrad.errors import DivergedError, MetagradError, MetagradWarning, NotFiniteDataError, NotFiniteError
from metagrad.experiment.experiment import Experiment
from metagrad.experiment.precision import precision_context
from metagrad.experiment.run import Run
from metagrad.fewshot import Algorithm, Evaluation, Tasks, meta_gradient
from metagrad.implicit import GradientDescent, Nesterov, Neumann
from metagrad.tree import Params


def warn_precision(
    experiment: Experiment, algorithm: Algorithm, model: nn.Module, theta: Params, tasks: Tasks, ranks: Ranks
) -> None:
    """Warn before a run of less than float32 if its first meta-gradient is far from that of float32."""
    chosen = experiment.compute.precision
    if chosen == "float32":
        return
    device = next(iter(theta.values())).device
    gradients = []
    for precision in ("float32", chosen):
        own = {name: leaf.detach().clone().requires_grad_(leaf.requires_grad) for name, leaf in theta.items()}
        with precision_context(precision, device):
            meta_gradient(algorithm, model, own, tasks)
        gradients.append(torch.cat([leaf.grad.flatten() for leaf in own.values() if leaf.grad is not None]))
    exact, rounded = gradients
    off = float((rounded - exact).norm() / exact.norm())
    if ranks.first and not off <= MOST_OFF:
        warnings.warn(
            f"with --precision {chosen} the first meta-gradient differs by {100 * off:.0f} % from that in float32, so "
            "training may diverge; leave out --precision, or watch the validation accuracy",
            MetagradWarning,
            stacklevel=3,
        )


MOST_OFF = 0.3  # of the gradient's norm: a 32-filter Conv4 in bf16 differs by 0.1 and trains equally well


def warn_noise(experiment: Experiment, progress: dict[str, Any], line: dict[str, Any], ranks: Ranks) -> None:
    """Warn once in a run if the linear solve diverges or the inner step size is too large."""
    message = None
    if line.get("residual", 0.0) > 1.0:
        curvature = getattr(getattr(experiment.method, "adjoint", None), "curvature", "gauss_newton")
        matrix = "" if curvature == "gauss_newton" else "--curvature gauss_newton, "
        message = (
            f"meta-step {line['step']}: the meta-gradient is mostly noise, because the linear solve fails (relative "
            f"residual {line['residual']:.2g}, should be well below 1; smallest curvature "
            f"{line['min_curvature']:.2g}); use {matrix}a larger --lam or more --cg-steps"
        )
    lr, stable = inner_lr(experiment.method), _stable_at(experiment.method, line.get("max_curvature", 0.0))
    if message is None and stable is not None and lr is not None and lr > stable:
        message = (
            f"meta-step {line['step']}: inner steps oscillate, because their size {lr:g} is too large: the largest "
            f"curvature is {line['max_curvature']:.2g}, so steps are stable below {stable:.2g}; lower --inner-lr, or "
            "use --inner-solver hessian-free, which chooses its own step size"
        )
    if message is None or progress.get("warned"):
        return
    progress["warned"] = True
    if ranks.first:
        warnings.warn(message, MetagradWarning, stacklevel=3)


def warn_dead(outputs: int, progress: dict[str, Any], validation: Evaluation, ranks: Ranks) -> None:
    """Warn once in a run if validation accuracy is at chance, although all numbers are finite."""
    if validation.metric != "accuracy":
        return
    classes = max(outputs, 2)  # one output answers yes or no
    chance, best = 1 / classes, -1.0 if progress["best_score"] is None else progress["best_score"]
    if validation.accuracy > chance + validation.ci95 or progress.get("dead"):
        return
    fell = best > chance + max(5 * validation.ci95, 0.02)
    if not fell and validation.loss < 1.5 * math.log(classes):
        return  # training may not have made progress yet
    progress["dead"] = True
    if ranks.first:
        kept = (
            f", after {100 * best:.1f} % at meta-step {progress['best_step']}, whose weights are kept" if fell else ""
        )
        warnings.warn(
            f"meta-step {progress['step']}: validation accuracy is at chance, {100 * validation.accuracy:.1f} % "
            f"(loss {validation.loss:.2g}){kept}; the features have collapsed and rarely recover: start a new run with "
            "a smaller --outer-lr or --inner-lr",
            MetagradWarning,
            stacklevel=3,
        )


def failure(run: Run, step: int, error: Exception) -> str:
    """Return the message of a failed meta-step: why, which option to change, and what the run keeps."""
    kept = f"; {run.folder} keeps its last good checkpoint" if run.has("last") else ""
    if isinstance(error, NotFiniteError | DivergedError) and not isinstance(error, NotFiniteDataError):
        return f"meta-step {step}: {error}: {_against_divergence(run.experiment.method, error)}{kept}"
    if isinstance(error, torch.linalg.LinAlgError):
        return (
            f"meta-step {step}: a linear system of the inner problem is singular or has overflowed: lower "
            f"--outer-lr{kept}"
        )
    return f"meta-step {step}: {error}{kept}"


def _against_divergence(method: Algorithm, error: Exception) -> str:
    """Return which option to change when the inner steps, or the Neumann series, diverged."""
    lr, lam = inner_lr(method), getattr(method, "lam", None)
    if lr is None:
        return "lower --outer-lr"
    if lam is not None and lam * lr > 2:
        return f"lower --lam or --inner-lr, whose product {lam * lr:.3g} must be below 2"
    series = getattr(getattr(method, "adjoint", None), "linear_solver", None)
    if isinstance(series, Neumann) and isinstance(error, DivergedError):
        return (
            "lower --inner-lr (the Neumann series uses a quarter of it), or --outer-lr if this happens late in training"
        )
    return "lower --inner-lr, or --outer-lr if this happens late in training"


def inner_lr(method: Algorithm) -> float | None:
    """Return a method's inner step size, if it is a number."""
    lr = getattr(method, "inner_lr", getattr(getattr(method, "solver", None), "lr", None))
    return lr if isinstance(lr, int | float) else None


def _stable_at(method: Algorithm, curvature: float) -> float | None:
    """Return the inner step size below which the solver is stable at this largest curvature, if it is known."""
    solver = getattr(method, "solver", None)
    known = solver is None or isinstance(solver, GradientDescent | Nesterov)
    if not known or curvature <= 0:
        return None
    return (1.0 if isinstance(solver, Nesterov) else 2.0) / curvature


LARGEST_LOSS = 1e6  # an untrained network begins below 100, and no training recovers from here


def require_finite(numbers: dict[str, float], theta: Params) -> None:
    """Refuse a loss or a gradient that is not finite, or a loss that is far too large, before the update.

    Raises
    ------
    MetagradError
        naming the likeliest cause.
    """
    gradient = torch.stack([leaf.grad.square().sum() for leaf in theta.values() if leaf.grad is not None]).sum()
    large = numbers["loss"] > LARGEST_LOSS
    if math.isfinite(numbers["loss"]) and bool(gradient.isfinite()) and not large:
        return
    if not math.isfinite(numbers["grad_norm"]) or numbers["grad_norm"] > 1e3:
        cause = "the inner steps diverge: lower --inner-lr"
    elif numbers.get("residual", 0.0) > 1.0:
        cause = "the linear solve diverges: use --curvature gauss_newton or a larger --lam"
    else:
        cause = "the outer steps are too large: lower --outer-lr"
    what = f"the loss is {numbers['loss']:.2g}" if large else "the loss or its gradient is not finite"
    raise MetagradError(f"{what}; probably {cause}")
