"""What each method gains on the frozen features of a pretrained network, by data set: three seeds, paired by task.

    python benchmarks/on_features.py DATA --out results/on-features       # DATA: folder with the data sets' files

EfficientNet-Lite0 stays frozen; one linear layer on its features, which begins as the identity, and what the method
learns besides are meta-trained on 5-way 1-shot tasks of the training classes: 500 meta-steps of 8 tasks, Adam 2e-4
with cosine, the best of five validations of 200 tasks. Every method and every reference is then judged on the same
600 test tasks, with 1 and with 5 shots, each picture by itself. At most 100 pictures a class, the first ones.
References learn nothing but a task's support set: the class mean of features of unit length, scikit-learn's logistic
regression (C = 10) on them, and the class mean of features that the training classes whitened.

Each cell's accuracies by task are kept in OUT; what is there is not computed again. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor
from torch.nn import functional

from metagrad import data
from metagrad.data import Classes, ImageClasses
from metagrad.data.features import FeatureDataset, features_of_dataset
from metagrad.experiment import Pretrained
from metagrad.experiment.pretrained import extractor_of
from metagrad.fewshot import (
    ANIL,
    IMAML,
    MAML,
    R2D2,
    EpisodeSampler,
    ITDBiO,
    MemoryReduced,
    Method,
    ProtoNet,
    Tasks,
    evaluate,
    meta_gradient,
)
from metagrad.seeds import Seeds

NETWORK = Pretrained("efficientnet-lite0", body="linear")
METHODS: dict[str, Method] = {
    "ProtoNet, learned scale": ProtoNet(scale=1.0),
    "memory-reduced": MemoryReduced(),
    "R2D2": R2D2(),
    "ANIL": ANIL(),
    "ITD-BiO": ITDBiO(),
    "iMAML, head": IMAML(adapts="head.*"),
    "MAML, head": MAML(adapts="head.*"),
}
MOST, STEPS, TASKS, LR, TEST = 100, 500, 8, 2e-4, 600
DATA = {
    "omniglot": {"name": "omniglot"},
    "cifar-fs": {"name": "cifar-fs"},
    "fc100": {"name": "fc100"},
    "tiny-imagenet": {"name": "folder", "file": "tiny-imagenet-200x100.zip", "image_size": 64},
}


def loaded(name: str, folder: Path) -> FeatureDataset:
    """Return the features of a data set."""
    how = dict(DATA[name])
    where = next(folder.rglob(str(how.pop("file")))) if "file" in how else folder
    pictures = data.load(str(how.pop("name")), data_dir=where, progress=_Said(name), **how)
    few = replace(pictures, **{which: _first(getattr(pictures, which)) for which in ("train", "val", "test")})
    extractor = extractor_of(NETWORK)
    assert extractor is not None
    return features_of_dataset(few, extractor, progress=_Said(name))


def _first(classes: ImageClasses) -> ImageClasses:
    return ImageClasses(classes.images, classes.counts.clamp(max=MOST), classes.names, classes.first)


class _Said:
    """Says about every half minute how far something is."""

    def __init__(self, name: str) -> None:
        self.name, self.last = name, 0.0

    def __call__(self, done: int, total: int, what: str) -> None:
        if time.monotonic() > self.last + 30:
            self.last = time.monotonic()
            print(f"{self.name}: {what} {done} of {total}", flush=True)


def sampler(classes: Classes, shots: int, queries: int) -> EpisodeSampler:
    """Return a source of 5-way tasks."""
    return EpisodeSampler(classes=classes, ways=5, shots=shots, queries=queries)


def trained(method: Method, features: FeatureDataset, seed: int) -> tuple[torch.nn.Module, dict[str, Tensor]]:
    """Meta-train; return the network and its best theta."""
    seeds = Seeds(seed)
    model = NETWORK.build((1280,), 5, generator=seeds.generator("weights", torch.device("cpu")))
    theta, draw = method.init(model), seeds.generator("tasks", torch.device("cpu"))
    source, optimizer = sampler(features.train, 1, 5), torch.optim.Adam(list(theta.values()), lr=LR)
    best, kept = -1.0, theta
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LR * (0.51 + 0.49 * math.cos(math.pi * step / STEPS))
        meta_gradient(method, model, theta, source(TASKS, generator=draw))
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % (STEPS // 5) == 0:
            look = torch.Generator().manual_seed(1)
            score = evaluate(method, model, theta, sampler(features.val, 1, 5), tasks=200, generator=look).score
            if score > best:
                best, kept = score, {name: leaf.detach().clone() for name, leaf in theta.items()}
    return model, kept


# --- references ---------------------------------------------------------------------------------------------


def nearest(tasks: Tasks) -> Tensor:
    """Return logits of the nearest class mean."""
    x, query = functional.normalize(tasks.support.x, dim=-1), functional.normalize(tasks.query.x, dim=-1)
    member = functional.one_hot(tasks.support.y, 5).to(x)
    means = (member.mT @ x) / member.sum(1)[..., None]
    return -torch.cdist(query, means)


def regression(tasks: Tasks) -> Tensor:
    """Return logits of scikit-learn's logistic regression."""
    from sklearn.linear_model import LogisticRegression

    out = []
    for support, y, query in zip(tasks.support.x, tasks.support.y, tasks.query.x, strict=True):
        fitted = LogisticRegression(C=10, max_iter=1000).fit(functional.normalize(support, dim=-1).numpy(), y.numpy())
        out.append(torch.from_numpy(fitted.decision_function(functional.normalize(query, dim=-1).numpy())))
    return torch.stack(out)


def whitened(train: Classes) -> Callable[[Tasks], Tensor]:
    """Return the nearest class mean after the covariance within the training classes is made one (ridge: its mean)."""
    x = functional.normalize(torch.as_tensor(train.data).float(), dim=-1)
    spread = torch.cat([part - part.mean(0) for part in x.split(train.counts.tolist())])
    covariance = (spread.T @ spread / len(spread)).double()
    values, vectors = torch.linalg.eigh(covariance + covariance.diagonal().mean() * torch.eye(x.shape[1]))
    root, centre = ((vectors * values.rsqrt()) @ vectors.T).float(), x.mean(0)

    def logits(tasks: Tasks) -> Tensor:
        parts = [
            part._replace(x=(functional.normalize(part.x, dim=-1) - centre) @ root)
            for part in (tasks.support, tasks.query)
        ]
        return nearest(Tasks(*parts))

    return logits


def judged(logits: Callable[[Tasks], Tensor], source: EpisodeSampler) -> np.ndarray:
    """Return the accuracy of each test task."""
    generator, rows = torch.Generator().manual_seed(0), []
    for _ in range(0, TEST, 100):  # evaluate draws 32 at a time: the sampler's stream is the same by task
        tasks = source(100, generator=generator)
        rows.append((logits(tasks).argmax(-1) == tasks.query.y).double().mean(-1))
    return torch.cat(rows).numpy()


# --- table --------------------------------------------------------------------------------------------------


def cells(
    features: FeatureDataset, out: Path, methods: list[str], seeds: int
) -> dict[str, list[dict[str, np.ndarray]]]:
    """Return the accuracies by task of every reference and method, {name: [of a seed {shots: (tasks,)}]}."""
    tests = {str(shots): sampler(features.test, shots, 15) for shots in (1, 5)}
    references = {
        "class mean": nearest,
        "logistic regression": regression,
        "class mean, whitened": whitened(features.train),
    }
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    for name, logits in references.items():
        here = out / f"{_plain(name)}.npz"
        if not here.exists():
            np.savez_compressed(here, **{shots: judged(logits, source) for shots, source in tests.items()})
        found[name] = [dict(np.load(here))]
    for name, method in ((name, METHODS[name]) for name in methods):
        for seed in range(seeds):
            here = out / f"{_plain(name)}-{seed}.npz"
            if not here.exists():
                began = time.monotonic()
                model, theta = trained(method, features, seed)
                seconds = time.monotonic() - began
                rows = {}
                for shots, source in tests.items():
                    logits = _logits(method, model, theta)
                    rows[shots] = judged(logits, source)
                np.savez_compressed(here, seconds=np.array(seconds), **rows)
                print(
                    f"{out.name} {name} {seed}: {rows['1'].mean():.3f} {rows['5'].mean():.3f}, {seconds:.0f} s",
                    flush=True,
                )
            found.setdefault(name, []).append(dict(np.load(here)))
    return found


def _logits(method: Method, model: torch.nn.Module, theta: dict[str, Tensor]) -> Callable[[Tasks], Tensor]:
    def logits(tasks: Tasks) -> Tensor:
        with torch.no_grad():
            return method.predict(model, theta, method.adapt(model, theta, tasks.support), tasks.query.x)

    return logits


def _plain(name: str) -> str:
    return name.lower().replace(",", "").replace(" ", "-")


def table(name: str, found: dict[str, list[dict[str, np.ndarray]]]) -> None:
    """Print a data set's part of the table."""
    print(f"\n| {name} | 1-shot | gained | 5-shot | gained | seconds |\n|---|---|---|---|---|---|")
    base = found["class mean"][0]
    for method, seeds in found.items():
        columns = []
        for shots in ("1", "5"):
            mean, ci = interval(np.stack([seed[shots] for seed in seeds]))
            gain, gain_ci = interval(np.stack([seed[shots] - base[shots] for seed in seeds]))
            own = "" if method == "class mean" else f"{100 * gain:+.1f} ± {100 * gain_ci:.1f}"
            columns += [f"{100 * mean:.1f} ± {100 * ci:.1f}", own]
        seconds = f"{np.mean([seed['seconds'] for seed in seeds]):.0f}" if "seconds" in seeds[0] else ""
        print(f"| {method} | {' | '.join(columns)} | {seconds} |")


def interval(rows: np.ndarray) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval.

    The interval is Student's over the seeds, or the one over tasks of the accuracies averaged over seeds where that is
    wider, or where there is one seed.
    """
    by_task, by_seed = rows.mean(0), rows.mean(1)
    half = 1.96 * by_task.std(ddof=1) / math.sqrt(len(by_task))
    if len(rows) > 1:
        half = max(half, stdtrit(len(rows) - 1, 0.975) * by_seed.std(ddof=1) / math.sqrt(len(rows)))
    return float(rows.mean()), float(half)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="where accuracies by task are kept")
    parser.add_argument("--only", nargs="*", default=[*DATA], choices=[*DATA], help="data sets")
    parser.add_argument("--methods", nargs="*", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    results = {}
    for name in options.only:
        out = options.out / name
        out.mkdir(parents=True, exist_ok=True)
        results[name] = cells(loaded(name, options.data), out, options.methods, options.seeds)
    for name, found in results.items():
        table(name, found)


if __name__ == "__main__":
    main()
