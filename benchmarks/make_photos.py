"""Make what `metagrad adapt photos` brings along: the centre of its features, and its calibration.

    python benchmarks/make_photos.py tiny-imagenet-200x100.zip

Classes are put into a random order (seed 0). Of the first 120, the mean of the features of unit length is the centre,
0.8 of which is subtracted; on tasks of 75 others, temperatures and thresholds are fitted for several numbers of
classes and of pictures. 14 pictures of each class are used, 64 pixels wide: sharper ones are told apart better.
ImageNet, on which the network was trained, has these classes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

import metagrad
from metagrad.classifier.calibrate import calibrate
from metagrad.classifier.learner import Learner
from metagrad.data import Dataset, ImageClasses
from metagrad.data.archive import open_members
from metagrad.data.class_folders import candidates
from metagrad.data.classes import Classes
from metagrad.data.features import FeatureDataset
from metagrad.experiment import Pretrained

EACH, FOR_CENTRE, SHARE = 14, 120, 0.8


def images_of(source: Path, learner: Learner) -> tuple[Tensor, list[str]]:
    """Return EACH images of every class, uint8, in a random order of the classes."""
    with open_members(source) as members:
        by_class: dict[str, list[str]] = {}
        for name, place in sorted(candidates(members).pictures.items()):
            by_class.setdefault(place.label, []).append(name)
        labels = sorted(by_class)
        labels = [labels[number] for number in np.random.default_rng(0).permutation(len(labels))]
        read = [learner.reading(members.read(name)) for label in labels for name in by_class[label][:EACH]]
    return torch.from_numpy(np.stack(read)), labels


def main() -> None:
    """Write both files into the package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--tasks", type=int, default=60)
    options = parser.parse_args()
    package = Path(metagrad.__file__).parent
    plain = Learner.untrained(Pretrained("efficientnet-lite0"))
    images, labels = images_of(options.source, plain)
    x = plain.network_inputs(images, progress=lambda done, total, _: print(f"\r{done} of {total}", end="", flush=True))
    centre = SHARE * F.normalize(x[: FOR_CENTRE * EACH], dim=-1).mean(0)
    save_file({"centre": centre}, package / "fewshot" / "backbones" / "efficientnet-lite0-centre.safetensors")

    learner = dataclasses.replace(Learner.of(Path("photos"), calibrated=False))
    counts = torch.full((len(labels),), EACH)
    rows, pictures = Classes(x, counts, tuple(labels)), ImageClasses(images, counts, tuple(labels))
    train, val, rest = labels[:FOR_CENTRE], labels[FOR_CENTRE:-5], labels[-5:]  # a data set has three splits
    shown = Dataset("Tiny-ImageNet", pictures.subset(train), pictures.subset(val), pictures.subset(rest), False, "", "")
    drawn = FeatureDataset(
        "Tiny-ImageNet", rows.subset(train), rows.subset(val), rows.subset(rest), "", "", pictures=shown
    )
    found = calibrate(learner, drawn, tasks=options.tasks)
    found = dataclasses.replace(found, of="75 classes of Tiny-ImageNet's small photographs")
    (package / "classifier" / "models" / "photos.json").write_text(json.dumps(found.as_json(), indent=1) + "\n")
    for size in found.sizes:
        print(size)


if __name__ == "__main__":
    main()
