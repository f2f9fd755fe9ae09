"""The training part of ``benchmarks/gpu.py``: Omniglot from the packed file, for as long as there is time.

The same steps as ``metagrad train``, whose run directory needs packages that a lent machine may lack. OUT/train.pt
holds the whole state, written in one step every 20 seconds, and is what the next call goes on from, bit for bit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpu_graph import Captured
from gpu_measure import machine, reason
from metagrad import CG, GradientDescent, Implicit
from metagrad.data import Dataset, ImageClasses
from metagrad.errors import MetagradError
from metagrad.fewshot import (
    FOMAML,
    IMAML,
    MAML,
    Algorithm,
    Conv4,
    EpisodeSampler,
    Evaluation,
    Metrics,
    Tasks,
    evaluate,
    meta_gradient,
)
from metagrad.files import write_atomically
from pack_omniglot import unpack

LOOK_EVERY = 10  # meta-steps between looks at the loss and the clock: the host waits for the GPU there
# What a checkpoint depends on: with other values it is not continued.
FIXED = (
    "method", "ways", "shots", "queries", "tasks", "filters", "inner_lr", "inner_steps", "lam", "cg_steps",
    "curvature", "outer_lr", "schedule", "meta_steps", "rotations", "seed", "matmul",
)  # fmt: skip


class Training:
    """A network on its way: everything that one meta-step changes, and how it is saved."""

    def __init__(self, asked: argparse.Namespace, dataset: Dataset) -> None:
        self.asked, self.dataset = asked, dataset
        device = torch.device(asked.device)
        channels, size = dataset.train.images.shape[1], dataset.train.images.shape[-1]
        first = torch.Generator().manual_seed(asked.seed)
        self.model = Conv4(asked.ways, channels=channels, image_size=size, filters=asked.filters, generator=first)
        self.model = self.model.to(device)
        self.method = method_of(asked)
        self.theta = self.method.init(self.model)
        self.best = {name: leaf.detach().clone() for name, leaf in self.theta.items()}
        self.optimizer = torch.optim.Adam(self.theta.values(), lr=asked.outer_lr)
        self.generator = torch.Generator(device).manual_seed(asked.seed)
        self.facts: dict[str, Any] = {"step": 0, "best_accuracy": -1.0, "best_step": 0, "seconds": 0.0, "curve": []}
        self.sampler = self.sample(dataset.train, asked.rotations and dataset.rotations)
        self.gradient: Callable[[Tasks], Metrics] = lambda tasks: meta_gradient(
            self.method, self.model, self.theta, tasks
        )

    def sample(self, classes: ImageClasses, rotations: bool = False) -> EpisodeSampler:
        """Return the sampler of a split, on the device."""
        asked = self.asked
        return EpisodeSampler(
            classes=classes.to(asked.device),
            ways=asked.ways,
            shots=asked.shots,
            queries=asked.queries,
            rotations=rotations,
        )

    def step(self) -> Metrics:
        """Take one meta-step; nothing is read from the device."""
        metrics = self.gradient(self.sampler(self.asked.tasks, generator=self.generator))
        for group in self.optimizer.param_groups:
            group["lr"] = outer_lr(self.asked, self.facts["step"] + 1)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.facts["step"] += 1
        return metrics

    def validate(self, name: str = "val", tasks: int = 0, theta: dict[str, torch.Tensor] | None = None) -> Evaluation:
        """Evaluate on a split: the same tasks every time, and none of the training generator's numbers used up."""
        sampler = self.sample(getattr(self.dataset, name))
        generator = torch.Generator(self.asked.device).manual_seed(self.asked.seed + (2 if name == "test" else 1))
        weights = self.theta if theta is None else theta
        count = tasks or self.asked.val_tasks
        return evaluate(self.method, self.model, weights, sampler, tasks=count, generator=generator)

    def save(self, path: Path) -> None:
        """Write the state in one step; the former one stays until it is complete."""
        state = {
            "theta": {name: leaf.detach() for name, leaf in self.theta.items()},
            "best": self.best,
            "adam": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "facts": self.facts,
            "fixed": self.fixed(),
        }
        write_atomically(
            path,
            lambda target: torch.save(state, target),
            refused=lambda error: MetagradError(f"cannot write {path} ({error.strerror})"),
        )

    def restore(self, path: Path) -> None:
        """Go on from a saved state.

        Raises
        ------
        MetagradError
            if it was trained with other options or data.
        """
        state = torch.load(path, map_location="cpu", weights_only=True)
        changed = {name: value for name, value in state["fixed"].items() if self.fixed()[name] != value}
        if changed:
            raise MetagradError(f"{path} was trained with {changed}: give the same options, or another --out")
        with torch.no_grad():
            for name, leaf in self.theta.items():
                leaf.copy_(state["theta"][name])
                self.best[name].copy_(state["best"][name])
        self.optimizer.load_state_dict(state["adam"])
        self.generator.set_state(state["generator"])
        self.facts = state["facts"]

    def fixed(self) -> dict[str, Any]:
        """Return what a checkpoint depends on."""
        return {name: getattr(self.asked, name) for name in FIXED} | {"data": self.dataset.digest}


def method_of(asked: argparse.Namespace) -> Algorithm:
    """Return the method that the options name."""
    steps = {"inner_lr": asked.inner_lr, "inner_steps": asked.inner_steps}
    if asked.method == "imaml":
        return IMAML(
            lam=asked.lam,
            solver=GradientDescent(lr=asked.inner_lr, max_steps=asked.inner_steps),
            adjoint=Implicit(linear_solver=CG(max_steps=asked.cg_steps), curvature=asked.curvature),
        )
    return MAML(**steps) if asked.method == "maml" else FOMAML(**steps)


def outer_lr(asked: argparse.Namespace, step: int) -> float:
    """Return the step size of meta-step ``step``, as ``metagrad train`` has it."""
    if asked.schedule == "constant":
        return asked.outer_lr
    return asked.outer_lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - 1) / asked.meta_steps)))


def train(asked: argparse.Namespace, results: Any, deadline: float) -> None:
    """Train until done or out of time; then test, or validate if there is more to do."""
    torch.set_float32_matmul_precision(asked.matmul)
    training, path = Training(asked, unpack(asked.data)), asked.out / "train.pt"
    if asked.resume and not path.exists():
        shutil.copyfile(asked.resume, path)
    if path.exists():
        training.restore(path)
        results.row("train", "continued", step=training.facts["step"])
    if asked.graph:
        capture(training, results)
    began = time.monotonic() - training.facts["seconds"]
    start = training.facts["step"]
    measured = time.monotonic()
    training.validate()  # warm, and how long is kept free for the end
    reserve = 2.0 + 1.5 * (time.monotonic() - measured) * max(1.0, asked.test_tasks / asked.val_tasks)
    steps_began = time.monotonic()
    proceed(training, results, path, began, deadline - reserve)
    training.facts["seconds"] = time.monotonic() - began
    training.save(path)
    done = training.facts["step"]
    results.row("train", "stopped", step=done, seconds_a_step=(time.monotonic() - steps_began) / max(1, done - start))
    finish(training, results)


def proceed(training: Training, results: Any, path: Path, began: float, until: float) -> None:
    """Take meta-steps, look at the loss and the clock now and then, save, validate.

    Raises
    ------
    MetagradError
        for a loss that is not finite; the last checkpoint is from before.
    """
    asked, facts, saved = training.asked, training.facts, time.monotonic()
    while facts["step"] < asked.meta_steps and time.monotonic() < until:
        metrics = training.step()
        step = facts["step"]
        if step % LOOK_EVERY and step % asked.val_every and step < asked.meta_steps:
            continue
        loss = float(metrics.loss)
        if not math.isfinite(loss):
            raise MetagradError(f"meta-step {step}: the loss is not finite")
        if step % asked.val_every == 0 or step == asked.meta_steps:
            found = training.validate()
            facts["seconds"] = time.monotonic() - began
            line = {"step": step, "loss": loss, "val_accuracy": found.accuracy, "val_ci95": found.ci95}
            line["seconds"] = round(facts["seconds"], 1)
            facts["curve"].append(line)
            results.row("train", "validation", **line)
            if found.accuracy > facts["best_accuracy"]:
                facts.update(best_accuracy=found.accuracy, best_step=step)
                training.best = {name: leaf.detach().clone() for name, leaf in training.theta.items()}
        if time.monotonic() - saved > asked.checkpoint_seconds:
            facts["seconds"] = time.monotonic() - began
            training.save(path)
            saved = time.monotonic()


def capture(training: Training, results: Any) -> None:
    """Train through a CUDA graph if one can be captured."""
    try:
        # Tasks of the right shape; which, is of no importance, and none of the training's own are used up.
        draws = torch.Generator(training.asked.device).manual_seed(0)
        tasks = training.sampler(training.asked.tasks, generator=draws)
        training.gradient = Captured(training.method, training.model, training.theta, tasks)
        results.row("train", "CUDA graph", captured=True)
    except Exception as error:
        results.row("train", "CUDA graph", captured=False, reason=reason(error))
    for leaf in training.theta.values():
        leaf.grad = None


def finish(training: Training, results: Any) -> None:
    """Write OUT/train.json: the test accuracy of the best validated weights, or validation while unfinished."""
    asked, facts = training.asked, training.facts
    complete = facts["step"] >= asked.meta_steps
    split = "test" if complete and asked.test_tasks else "val"
    tasks = asked.test_tasks if split == "test" else asked.val_tasks
    weights = training.best if complete else None
    found = training.validate(split, tasks, weights)
    classes: ImageClasses = getattr(training.dataset, split)
    result = {
        "metric": f"{split}_accuracy",
        "value": found.accuracy,
        "ci95": found.ci95,
        "step": facts["step"],
        "meta_steps": asked.meta_steps,
        "weights_of_step": facts["best_step"] if complete else facts["step"],
        "protocol": {
            "dataset": training.dataset.name,
            "preprocessing": training.dataset.preprocessing,
            "split": f"{split} ({len(classes.names)} classes, none of them in training)",
            "ways": asked.ways,
            "shots": asked.shots,
            "queries": asked.queries,
            "tasks": tasks,
            "task_seed": asked.seed + (2 if split == "test" else 1),
            "transductive": found.transductive,
        },
        "method": asked.method,
        "algorithm": dataclasses.asdict(training.method),  # type: ignore[call-overload]
        "options": training.fixed(),
        "train_seconds": round(facts["seconds"], 1),
        "curve": facts["curve"],
        "machine": machine(asked.device),
    }
    path = asked.out / "train.json"
    text = json.dumps(result, indent=1) + "\n"
    write_atomically(
        path,
        lambda target: target.write_text(text, encoding="utf-8") and None,
        refused=lambda error: MetagradError(f"cannot write {path} ({error.strerror})"),
    )
    results.row("train", result["metric"], value=found.accuracy, ci95=found.ci95, tasks=tasks, step=facts["step"])
