"""How drawings are told apart that are large or small, here or there on a page, in even light or not.

    python benchmarks/pages.py glyphs --data-dir data                # as people's pictures are read
    python benchmarks/pages.py glyphs --data-dir data --whole        # as they were: the whole page is the picture

Omniglot's test characters on a page of 400 by 300 pixels, grey ink, noise of 4 grey values, JPEG; 5-way 1-shot, 3
queries a class, 60 tasks (the same for every row), each image by itself; 95 % intervals over tasks.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from metagrad import data
from metagrad.classifier.learner import Learner
from metagrad.data import ImageClasses, reading

_SIZES = {"fills the page": (1.0, 1.0), "0.8 to 1": (0.8, 1.0), "0.5 to 0.9": (0.5, 0.9), "0.2 to 0.4": (0.2, 0.4)}
_HIGH, _WIDE = 300, 400


def _lights(direction: float) -> dict[str, np.ndarray]:
    y, x = np.meshgrid(np.linspace(-1, 1, _HIGH), np.linspace(-1, 1, _WIDE), indexing="ij")
    along = np.cos(direction) * x + np.sin(direction) * y
    return {
        "slope": 0.72 + 0.23 * along,
        "lamp": 0.95 - 0.25 * (along + 0.4) ** 2,
        "dark corners": 0.95 - 0.22 * (x * x + y * y),
        "shadow, soft edge": 0.75 - 0.2 * np.tanh(6 * (along - 0.2)),
        "shadow, hard edge": np.where(along > 0.3, 0.55, 0.95),
    }


def _photographed(ink: np.ndarray, sizes: tuple[float, float], light: str | None, rng: np.random.Generator) -> bytes:
    side = int(_HIGH * rng.uniform(*sizes))
    drawn = np.asarray(Image.fromarray(ink).resize((side, side), Image.Resampling.BICUBIC)) / 255
    page = np.zeros((_HIGH, _WIDE))
    top, left = rng.integers(0, _HIGH - side + 1), rng.integers(0, _WIDE - side + 1)
    page[top : top + side, left : left + side] = drawn
    shade = 1.0 if light is None else _lights(rng.uniform(0, 2 * np.pi))[light]
    seen = 235 * shade * (1 - 0.75 * page) + rng.normal(0, 4, page.shape)
    stream = io.BytesIO()
    Image.fromarray(seen.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _right(
    learner: Learner, classes: ImageClasses, sizes: tuple[float, float], light: str | None
) -> tuple[np.ndarray, int]:
    """Return the fraction that is right of each task, and how many pictures could not be read."""
    rng, right, unread = np.random.default_rng(0), [], 0
    for task in range(60):
        g = torch.Generator().manual_seed(task)
        seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}
        for one in torch.randperm(len(classes.names), generator=g)[:5].tolist():
            for place, drawing in enumerate(torch.randperm(int(classes.counts[one]), generator=g)[:4].tolist()):
                ink = classes.images[int(classes.first[one]) + drawing, 0].numpy()
                try:
                    image = learner.reading(_photographed(ink, sizes, light, rng))
                except ValueError:
                    image, unread = np.zeros((1, learner.reading.size, learner.reading.size), np.uint8), unread + 1
                seen[place == 0].append(torch.from_numpy(image))
        classifier = learner.adapt(torch.stack(seen[True]), list("abcde"))
        said = classifier.classify(torch.stack(seen[False]))[0].argmax(-1)
        right.append(float((said == torch.arange(5).repeat_interleave(3)).float().mean()))
    return np.array(right), unread


def _whole(drawn: Image.Image) -> Image.Image:
    return ImageOps.pad(drawn, (max(drawn.size),) * 2, color=0)


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory, or glyphs")
    parser.add_argument("--data-dir", type=Path, help="where Omniglot lies (as for metagrad train)")
    parser.add_argument("--whole", action="store_true", help="take the whole page for the picture")
    options = parser.parse_args()
    if options.whole:
        reading._framed = _whole
    learner, classes = Learner.of(options.run), data.load("omniglot", data_dir=options.data_dir).test
    rows: list[tuple[str, tuple[float, float], str | None]] = [(name, sizes, None) for name, sizes in _SIZES.items()]
    rows += [(light, _SIZES["0.8 to 1"], light) for light in _lights(0.0)]
    for name, sizes, light in rows:
        right, unread = _right(learner, classes, sizes, light)
        ci95 = 1.96 * right.std(ddof=1) / len(right) ** 0.5
        print(f"{name:18} {100 * right.mean():5.1f} ± {100 * ci95:.1f} %, {unread} of {60 * 20} not read", flush=True)


if __name__ == "__main__":
    main()
