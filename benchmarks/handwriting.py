"""Calibrate the model that comes along on handwriting, as people's own pictures are read.

    python benchmarks/handwriting.py --data-dir data      # where Omniglot's two archives lie

It learned from letters of fonts and characters by hand. What it is worth on drawings by people, how sure it is of
them and when it should say that it knows no such thing are found on Omniglot's validation characters, each read from
its file as metagrad predict reads it. Writes src/metagrad/classifier/models/glyphs/calibration.json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from metagrad import data
from metagrad.classifier.calibrate import calibrate
from metagrad.classifier.calibration import CALIBRATION
from metagrad.classifier.learner import Learner
from metagrad.data import ImageClasses
from metagrad.data.archive import open_members
from metagrad.data.reading import Reading
from metagrad.experiment.run import Run

_SHIPPED = Path(__file__).parents[1] / "src" / "metagrad" / "classifier" / "models" / "glyphs"


def as_read(classes: ImageClasses, folder: Path, reading: Reading) -> ImageClasses:
    """Return classes of Omniglot with every drawing read from its file in ``folder``, as a person's picture is."""
    files: dict[str, list[bytes]] = {name: [] for name in classes.names}
    for archive in ("images_background", "images_evaluation"):
        with open_members(folder / f"{archive}.zip") as members:
            for name in members.names:
                if (label := name.rpartition("/")[0]) in files:
                    files[label].append(members.read(name))
    images = np.stack([reading(drawing) for name in classes.names for drawing in files[name]])
    counts = torch.tensor([len(files[name]) for name in classes.names])
    return ImageClasses(torch.from_numpy(images), counts, classes.names)


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with Omniglot's two zip files")
    folder = parser.parse_args().data_dir
    learner = Learner.of(_SHIPPED, calibrated=False)
    omniglot = data.load("omniglot", data_dir=folder)
    learned = data.load(learner.facts["dataset"], data_dir=folder).train
    drawn = replace(omniglot, train=learned, val=as_read(omniglot.val, folder, learner.reading))
    found = calibrate(learner, drawn, tasks=400)
    Run.open(_SHIPPED).write_measured(CALIBRATION, found.as_json(), learner.facts["digest"])
    for size in found.sizes:
        print(f"{size.ways:2}-way {size.shots}-shot: {size.accuracy:.1%} right, {size.about_reject()}")


if __name__ == "__main__":
    main()
