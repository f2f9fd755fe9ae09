"""What is reached without meta-learning: one classifier of all training classes, then a head on its features.

    python benchmarks/classifier_baseline.py omniglot --data-dir DATA --out OUT --ways 5 20

Conv4 with pooling and 64 filters learns to tell all training classes apart (quarter turns of Omniglot's characters are
classes of their own): batches of 300 images, Adam 3e-3 with cosine, the last weights. Its features are then judged on
tasks of test classes (600 of five ways, 200 of twenty), 15 queries a class, batch statistics of all query images, as
the other rows of the table: by the class mean (ProtoNet with nothing learned), and by a head that is fitted to the
support set (memory-reduced's: logistic regression with l2). Weights and accuracies by task are kept in OUT.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from metagrad import data, keep_memory
from metagrad.data import ImageClasses
from metagrad.experiment import Conv4Config
from metagrad.fewshot import EpisodeSampler, MemoryReduced, Method, ProtoNet, evaluate
from metagrad.fewshot.batched_forward import shared_outputs
from metagrad.seeds import Seeds

HEADS: dict[str, Method] = {"class mean": ProtoNet(), "fitted head": MemoryReduced(start="zero")}
BATCH, LR = 300, 3e-3


def batch(classes: ImageClasses, turned: bool, flipped: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw images of any classes and their labels; a turned class is a class of its own."""
    label = torch.randint(len(classes.names), (BATCH,), generator=generator)
    place = (torch.rand(BATCH, generator=generator) * classes.counts[label]).long()
    x = classes.images[classes.first[label] + place].float().div_(255)
    if flipped:
        mirror = torch.rand(BATCH, generator=generator) < 0.5
        x = torch.where(mirror[:, None, None, None], x.flip(-1), x)
    if not turned:
        return x, label
    turn = torch.randint(4, (BATCH,), generator=generator)
    x = torch.stack([image.rot90(int(k), (-2, -1)) for image, k in zip(x, turn, strict=True)])
    return x, 4 * label + turn


def trained(dataset: data.Dataset, steps: int, seed: int) -> dict[str, Tensor]:
    """Train the classifier; return its weights."""
    assert isinstance(dataset.train, ImageClasses)
    seeds, outputs = Seeds(seed), len(dataset.train.names) * (4 if dataset.rotations else 1)
    shape = tuple(dataset.train.images.shape[1:])
    model = Conv4Config(filters=64, pooling=True).build(shape, outputs, generator=seeds.generator("weights"))
    optimizer, draw = torch.optim.Adam(model.parameters(), lr=LR), seeds.generator("tasks")
    weights, began, right = dict(model.named_parameters()), time.process_time(), 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * (0.51 + 0.49 * math.cos(math.pi * step / steps))
        x, y = batch(dataset.train, dataset.rotations, not dataset.rotations, draw)
        outputs_of = shared_outputs(model, weights, x[None])[0]  # as model(x), in two thirds of its time
        functional.cross_entropy(outputs_of, y).backward()
        optimizer.step()
        optimizer.zero_grad()
        right += 0.02 * (float((outputs_of.argmax(-1) == y).float().mean()) - right)
        if (step + 1) % max(1, steps // 20) == 0:
            seconds = time.process_time() - began
            print(f"step {step + 1}, {seconds:.0f} CPU s: training images right {right:.1%}", flush=True)
    return {name: leaf.detach() for name, leaf in weights.items()}


def judged(
    method: Method, weights: dict[str, Tensor], dataset: data.Dataset, split: str, ways: int, shots: int
) -> np.ndarray:
    """Return the accuracy of each task."""
    shape = tuple(dataset.train.data.shape[1:])
    model: nn.Module = Conv4Config(filters=64, pooling=True).build(shape, ways)
    theta = {name: weights.get(name, leaf) for name, leaf in method.init(model).items() if not name.startswith("head.")}
    source = EpisodeSampler(classes=getattr(dataset, split), ways=ways, shots=shots, queries=15)
    generator = Seeds(0).generator("test")  # the tasks of `metagrad evaluate`
    result = evaluate(method, model, theta, source, tasks=600 if ways < 20 else 200, generator=generator)
    return np.asarray(result.per_task)


def main() -> None:
    """Train, judge, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=["omniglot", "cifar-fs", "fc100"])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--ways", type=int, nargs="+", default=[5])
    parser.add_argument("--split", choices=["val", "test"], default="test")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    keep_memory()
    out = options.out / f"{options.dataset}-{options.seed}"
    out.mkdir(parents=True, exist_ok=True)
    dataset = data.load(options.dataset, data_dir=options.data_dir)
    if not (out / "weights.safetensors").exists():
        weights = trained(dataset, options.steps, options.seed)
        save_file(
            {name: leaf for name, leaf in weights.items() if name.startswith("body.")}, out / "weights.safetensors"
        )
    weights = load_file(out / "weights.safetensors")
    print("| head | ways | shots | accuracy, % |\n|---|---|---|---|")
    for (name, method), ways, shots in itertools.product(HEADS.items(), options.ways, (1, 5)):
        rows = judged(method, weights, dataset, options.split, ways, shots)
        np.save(out / f"{options.split}-{name.replace(' ', '-')}-{ways}way-{shots}shot.npy", rows)
        half = 196 * rows.std(ddof=1) / math.sqrt(len(rows))
        print(f"| {name} | {ways} | {shots} | {100 * rows.mean():.2f} ± {half:.2f} |", flush=True)


if __name__ == "__main__":
    main()
