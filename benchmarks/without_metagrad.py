r"""Accuracies of committed weights by a program that shares no line with metagrad: plain PyTorch, its own tasks.

    python benchmarks/without_metagrad.py results/omniglot-two-stage --data-dir DATA --cells imaml-5way-1shot-0
    python benchmarks/without_metagrad.py results/omniglot-long --data-dir DATA --tasks 250 --out accuracies.jsonl \
        --cells imaml-20way-1shot-0 maml-20way-1shot-0

A cell is a run of the table of Omniglot that adapts by gradient descent (iMAML, MAML, first-order MAML, Reptile).
Beside each stands the class mean of the features it began at, on the same tasks. Test characters upright, 15 queries a
class. A task's support set and its query set are two batches, and batch norm uses the mean and variance of the batch
at hand (eps 1e-5). Support loss: the mean cross-entropy plus (λ / 2) ‖phi − theta‖² over all weights. ``--out`` gets a
line of JSON for each cell: the accuracy of every task, of the cell and of the class mean.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

SPLIT = Path(__file__).parents[1] / "src/metagrad/data/splits/omniglot.json"
QUERIES = 15
Weights = dict[str, Tensor]


def upright_test_characters(data_dir: Path) -> Tensor:
    """Return the test characters, ``(423, 20, 1, 28, 28)``: ink is 1, paper 0."""
    names = json.loads(SPLIT.read_text(encoding="utf-8"))["test"]
    drawings: dict[str, list[Image.Image]] = {name: [] for name in names}
    for half in ("images_background", "images_evaluation"):
        (path,) = [*data_dir.glob(f"{half}.zip"), *data_dir.glob(f"omniglot/{half}.zip")]
        with zipfile.ZipFile(path) as archive:
            for entry in sorted(archive.namelist()):
                character = entry.rpartition("/")[0]
                if entry.endswith(".png") and character in drawings:
                    drawings[character].append(Image.open(io.BytesIO(archive.read(entry))).convert("L"))
    small = [
        [ImageOps.invert(one).resize((28, 28), Image.Resampling.LANCZOS) for one in drawings[name]] for name in names
    ]
    return torch.tensor(np.stack([np.stack([np.asarray(one) for one in some]) for some in small]))[:, :, None] / 255


def features(weights: Weights, x: Tensor) -> Tensor:
    """Return the features of a batch of images."""
    for block in range(4):
        scale, offset = weights[f"body.{4 * block + 1}.weight"], weights[f"body.{4 * block + 1}.bias"]
        x = functional.conv2d(x, weights[f"body.{4 * block}.weight"], padding=1)
        x = functional.batch_norm(x, None, None, scale, offset, training=True, eps=1e-5)
        x = functional.max_pool2d(functional.relu(x), 2)
    return x.flatten(1)


def by_class_mean(weights: Weights, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
    """Return the nearest class mean of each query's features."""
    with torch.no_grad():
        found = features(weights, support)
        means = torch.stack([found[labels == label].mean(0) for label in range(int(labels.max()) + 1)])
        return torch.cdist(features(weights, query), means).argmin(1)


def logits(weights: Weights, step: dict[str, float], support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
    """Return the queries' logits, of a network whose weights all took gradient steps on the support loss."""
    theta = {name: leaf for name, leaf in weights.items() if name.startswith(("body.", "head."))}
    if ".start/weight" in weights:  # one row for all classes
        theta["head.weight"] = weights[".start/weight"].expand(int(labels.max()) + 1, -1)
        theta["head.bias"] = weights[".start/bias"].expand(int(labels.max()) + 1)
    phi = {name: leaf.clone().requires_grad_() for name, leaf in theta.items()}
    for _ in range(int(step["steps"])):
        outputs = functional.linear(features(phi, support), phi["head.weight"], phi["head.bias"])
        gradients = torch.autograd.grad(functional.cross_entropy(outputs, labels), [*phi.values()])
        with torch.no_grad():
            for (name, leaf), gradient in zip(phi.items(), gradients, strict=True):
                leaf -= step["lr"] * (gradient + step["lam"] * (leaf - theta[name]))
    with torch.no_grad():
        return functional.linear(features(phi, query), phi["head.weight"], phi["head.bias"])


def drawn(images: Tensor, ways: int, shots: int, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield tasks: support images, their labels, and query images, in the order of their classes."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        classes = random.choice(len(images), ways, replace=False)
        some = [images[one][random.permutation(20)[: shots + QUERIES]] for one in classes]
        labels = torch.arange(ways).repeat_interleave(shots)
        yield torch.cat([one[:shots] for one in some]), labels, torch.cat([one[shots:] for one in some])


def step_of(config: dict) -> dict[str, float]:  # type: ignore[type-arg]
    """Return step size, number of steps and λ of a run."""
    method = config["experiment"]["method"]
    solver = method.get("solver")
    if solver is None:
        return {"lr": method["inner_lr"], "steps": method["inner_steps"], "lam": 0.0}
    return {"lr": solver["lr"], "steps": solver["max_steps"], "lam": method["lam"]}


def shown(values: list[float]) -> str:
    """Return the mean and its 95 % interval, in percent."""
    row = 100 * np.array(values)
    return f"{row.mean():.2f} ± {1.96 * row.std(ddof=1) / math.sqrt(len(row)):.2f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--cells", nargs="+", required=True)
    parser.add_argument("--tasks", type=int, default=600)
    parser.add_argument("--seed", type=int, default=90210)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    images = upright_test_characters(options.data_dir)
    print("| cell | accuracy, % | class mean, % | minus the class mean, paired |\n|---|---|---|---|")
    for cell in options.cells:
        folder = options.runs / cell
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tasks, step = config["experiment"]["tasks"], step_of(config)
        weights, body = (
            {name.removeprefix("theta/"): leaf for name, leaf in load_file(one / "best.safetensors").items()}
            for one in (folder, options.runs / f"body-{config['experiment']['seed']}")
        )
        truth = torch.arange(tasks["ways"]).repeat_interleave(QUERIES)
        ours, means = [], []
        for support, labels, query in drawn(images, tasks["ways"], tasks["shots"], options.tasks, options.seed):
            ours.append(float((logits(weights, step, support, labels, query).argmax(1) == truth).float().mean()))
            means.append(float((by_class_mean(body, support, labels, query) == truth).float().mean()))
        if options.out is not None:
            line = {"cell": cell, "task_seed": options.seed, "per_task": ours, "per_task_class_mean": means}
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        gap = [one - other for one, other in zip(ours, means, strict=True)]
        print(f"| {cell} | {shown(ours)} | {shown(means)} | {shown(gap)} |", flush=True)


if __name__ == "__main__":
    main()
