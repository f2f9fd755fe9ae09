"""How well runs tell drawings apart: by hand, in fonts, and of kinds that none of them learned from.

    python benchmarks/drawings.py glyphs runs/a runs/b --data-dir data              # validation: choose here
    python benchmarks/drawings.py glyphs --data-dir data --split test               # look once

Omniglot's characters and glyphs' letters of one split; and what is in neither data set: scikit-learn's handwritten
digits (8×8 pixels, enlarged, read as a person's picture is) and symbols of DejaVu that are no letters (money, weather,
chess, stars, ...), drawn as glyphs are. 5 queries a class, 400 tasks (20-way: 100), task seed 5, the same for all runs.
"Together": a task's query images with each other's batch statistics; "by itself": the adapted network, taken away, as
metagrad predict uses it.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from metagrad import allocator, data
from metagrad.classifier.learner import Learner
from metagrad.classifier.network import for_ways
from metagrad.data import Classes, ImageClasses
from metagrad.data.glyph_drawing import RECIPE, covered, draw_classes, font_folder, normalised, open_font
from metagrad.data.reading import Reading
from metagrad.experiment.setup import build
from metagrad.fewshot import EpisodeSampler, evaluate

SIZES = ((5, 1), (5, 5), (20, 1))
_BLOCKS = {"Currency": (0x20A0, 0x20B6), "Symbols": (0x2600, 0x2700), "Dingbats": (0x2701, 0x27BF)}
_PALE = 8.0  # of 255, the mean of a drawing below which hairlines are all but lost
_ALIKE = 0.8  # correlation of two plain shapes beyond which they are one symbol


def digits() -> ImageClasses:
    """Return scikit-learn's digits, each read as a picture file would be."""
    from sklearn.datasets import load_digits

    found, reading = load_digits(), Reading.of("omniglot", None)
    images = []
    for eight in found.images:
        ink = Image.fromarray((eight * 255 / 16).astype(np.uint8)).resize((80, 80), Image.Resampling.BICUBIC)
        page = Image.new("L", (120, 120), 255)
        page.paste(Image.fromarray(255 - np.asarray(ink)), (20, 20))
        images.append(reading.pixels(np.asarray(page)))
    return ImageClasses.from_arrays(torch.from_numpy(np.stack(images)), torch.from_numpy(found.target))


def symbols() -> ImageClasses:
    """Return symbols of DejaVu Sans that are no letters, none like another, drawn as glyphs are."""
    folder = font_folder()
    known, font = covered(folder)["DejaVuSans"], open_font(folder, "DejaVuSans")
    names: list[str] = []
    shapes: list[np.ndarray] = []
    for block, (first, last) in _BLOCKS.items():
        for point in range(first, last):
            shape = normalised(chr(point), font).astype(np.float64).ravel()
            if point not in known or shape.max() == 0:
                continue
            shape = (shape - shape.mean()) / np.linalg.norm(shape - shape.mean())
            if all(float(shape @ other) < _ALIKE for other in shapes):
                names.append(f"{block}/U+{point:04X} symbol")
                shapes.append(shape)
    images = torch.from_numpy(draw_classes(names, folder))
    made = ImageClasses(images, torch.full((len(names),), RECIPE.per_class), tuple(names))
    ink = images.float().mean((1, 2, 3)).view(len(names), RECIPE.per_class).amin(1)
    return made.subset([name for name, least in zip(names, ink.tolist(), strict=True) if least > _PALE])


def by_itself(learner: Learner, classes: Classes, ways: int, shots: int, tasks: int) -> torch.Tensor:
    """Return each task's accuracy, ``(tasks,)``, of networks that are taken away."""
    source, generator = sampler(classes, ways, shots), torch.Generator().manual_seed(5)
    found = []
    for first in range(0, tasks, 32):
        drawn = source(min(32, tasks - first), generator=generator)  # as evaluate draws them
        networks = learner.solved(drawn.support.x, drawn.support.y, ways)
        for number, (network, _) in enumerate(networks):
            with torch.inference_mode():
                right = network(drawn.query.x[number]).argmax(-1) == drawn.query.y[number]
            found.append(right.float().mean())
    return torch.stack(found)


def together(learner: Learner, classes: Classes, ways: int, shots: int, tasks: int) -> torch.Tensor:
    """Return each task's accuracy with its query images judged together."""
    inputs = (learner.reading.channels, learner.reading.size, learner.reading.size)
    method, model = build(learner.experiment, inputs, ways)
    theta = for_ways(learner.theta, method.init(model))
    generator = torch.Generator().manual_seed(5)
    return evaluate(method, model, theta, sampler(classes, ways, shots), tasks=tasks, generator=generator).per_task


def sampler(classes: Classes, ways: int, shots: int) -> EpisodeSampler:
    """Return how all tasks are drawn."""
    return EpisodeSampler(classes=classes, ways=ways, shots=shots, queries=5)


def main() -> None:
    """Print the table."""
    allocator.keep_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories; glyphs: the model that comes along")
    parser.add_argument("--data-dir", type=Path, help="where Omniglot's archives lie (as for metagrad train)")
    parser.add_argument("--split", choices=("val", "test"), default="val", help="of Omniglot and glyphs")
    parser.add_argument("--tasks", type=int, default=400, help="tasks of 5 ways; of 20 a quarter")
    options = parser.parse_args()
    sets = {name: getattr(data.load(name, data_dir=options.data_dir), options.split) for name in ("omniglot", "glyphs")}
    sets |= {"digits": digits(), "symbols": symbols()}
    for run in options.runs:
        learner = Learner.of(run, calibrated=False)
        for name, classes in sets.items():
            for ways, shots in SIZES:
                if len(classes.names) < ways:
                    continue
                tasks = options.tasks if ways == 5 else options.tasks // 4
                told = [f"{run.name:12} {name:9} {len(classes.names):4} classes {ways:2}-way {shots}-shot"]
                for how in (together, by_itself):
                    found = 100 * how(learner, classes, ways, shots, tasks)
                    interval = 1.96 * float(found.std()) / math.sqrt(tasks)
                    told.append(f"{how.__name__.replace('_', ' ')} {float(found.mean()):5.1f} ± {interval:.1f}")
                print("   ".join(told), flush=True)


if __name__ == "__main__":
    main()
