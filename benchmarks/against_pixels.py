"""How much an adapted network is worth beside what needs no training: real tasks, each image by itself.

    python benchmarks/against_pixels.py runs/imaml                  # the run's own test classes
    python benchmarks/against_pixels.py runs/imaml --shots 5 --ways 10

Contestants see the same tasks: the run's method, adapted and taken away as ``metagrad adapt`` does; the same begun at
a head of equal rows, as where the number of classes is not that of training; logistic regression and the nearest
neighbour on raw pixels (scikit-learn). Shown: mean accuracy over tasks with its 95 % interval, and the difference to
the better of the two on pixels, taken task by task.
"""

from __future__ import annotations

import argparse
import math
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from metagrad.classifier.learner import Learner
from metagrad.classifier.network import for_ways
from metagrad.experiment.run import Run
from metagrad.fewshot import EpisodeSampler


def main() -> None:
    """Draw the tasks, let every contestant label them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--data-dir", type=Path, help="where the data lie (as for metagrad evaluate)")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="classes to draw from (test)")
    parser.add_argument("--tasks", type=int, default=600, help="tasks (600)")
    parser.add_argument("--ways", type=int, help="classes a task (as trained)")
    parser.add_argument("--shots", type=int, help="images a class to learn from (as trained)")
    parser.add_argument("--queries", type=int, default=5, help="images a class to label (5)")
    options = parser.parse_args()
    run = Run.open(options.run)
    learner, dataset = Learner.of(options.run), run.open_tasks(data_dir=options.data_dir).dataset
    ways, shots = options.ways or learner.episodes.ways, options.shots or learner.episodes.shots
    sampler = EpisodeSampler(classes=getattr(dataset, options.split), ways=ways, shots=shots, queries=options.queries)
    level = replace(learner, theta=_level(learner))
    found: dict[str, list[float]] = {}
    generator = torch.Generator().manual_seed(0)
    for first in range(0, options.tasks, 16):
        drawn = sampler(min(16, options.tasks - first), generator=generator)
        x, y = drawn.support.x, drawn.support.y
        solved = {run.method_name: learner.solved(x, y, ways), "from equal rows": level.solved(x, y, ways)}
        for task in range(len(y)):
            x, truth = drawn.query.x[task], drawn.query.y[task]
            with torch.inference_mode():
                for name, networks in solved.items():
                    hit = (networks[task][0](x).argmax(-1) == truth).float().mean()
                    found.setdefault(name, []).append(float(hit))
            for name, guess in _on_pixels(drawn.support.x[task], y[task], x).items():
                found.setdefault(name, []).append(float((guess == truth).float().mean()))
    table = {name: torch.tensor(values) for name, values in found.items()}
    print(f"{run.dataset} {options.split}, {ways}-way {shots}-shot, {options.queries} queries, {options.tasks} tasks, "
          "each image by itself")  # fmt: skip
    for name, values in table.items():
        print(f"{name:28} {_shown(values)}")
    best = max(("logistic regression", "nearest neighbour"), key=lambda name: float(table[name].mean()))
    gain = table["from equal rows"] - table[run.method_name]
    print(f"from equal rows above {run.method_name}: {_shown(gain)}")
    print(f"{run.method_name} above {best}: {_shown(table[run.method_name] - table[best])}")


def _level(learner: Learner) -> dict[str, Tensor]:
    """Return theta whose outputs begin alike, by way of a network of one output more."""
    like = {
        name: torch.empty(len(leaf) + 1, *leaf.shape[1:]) if "head." in name and leaf.dim() else leaf
        for name, leaf in learner.theta.items()
    }
    more = for_ways(learner.theta, like)
    return {name: leaf[: len(learner.theta[name])] if leaf.dim() else leaf for name, leaf in more.items()}


def _on_pixels(support: Tensor, y: Tensor, query: Tensor) -> dict[str, Tensor]:
    a, b = support.flatten(1).numpy(), query.flatten(1).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        linear = LogisticRegression(max_iter=1000).fit(a, y.numpy()).predict(b)
        near = KNeighborsClassifier(1).fit(a, y.numpy()).predict(b)
    return {"logistic regression": torch.from_numpy(linear), "nearest neighbour": torch.from_numpy(near)}


def _shown(values: Tensor) -> str:
    return f"{100 * float(values.mean()):.1f} ± {196 * float(values.std()) / math.sqrt(len(values)):.1f} %"


if __name__ == "__main__":
    main()
