"""Drawings of random strokes: new classes whenever a seed is new."""

import itertools
from dataclasses import replace

import numpy as np
import torch

from metagrad.data import Dataset, ImageClasses


def drawings(count, each, seed):
    """Draw ``count`` kinds of strokes, ``each`` times with a jitter: uint8 (count, each, 56, 56), dark on light."""
    g = np.random.default_rng(seed)
    found = np.full((count, each, 56, 56), 255, np.uint8)
    for kind in range(count):
        points = g.integers(8, 48, (4, 2))
        for one in range(each):
            jittered = points + g.integers(-2, 3, points.shape)
            for a, b in itertools.pairwise(jittered):
                for t in np.linspace(0, 1, 60):
                    y, x = (a * (1 - t) + b * t).astype(int)
                    found[kind, one, y - 1 : y + 2, x - 1 : x + 2] = 0
    return found


def dataset():
    def classes(prefix, count, seed):
        images = 255 - torch.from_numpy(drawings(count, 8, seed))[:, :, ::2, ::2].flatten(0, 1)[:, None]
        return ImageClasses(images, torch.full((count,), 8), tuple(f"{prefix}{i}" for i in range(count)))

    return Dataset("omniglot", classes("a", 9, 0), classes("b", 8, 1), classes("c", 6, 2), True, "toy", "digest0")


def twenty():
    """Return :func:`dataset` with 20 images a class, as Omniglot has: some are there twice or thrice."""

    def more(classes):
        rows = torch.arange(len(classes.images)).view(-1, 8).repeat(1, 3)[:, :20].flatten()
        return ImageClasses(classes.images[rows], torch.full_like(classes.counts, 20), classes.names)

    whole = dataset()
    return replace(whole, **{which: more(getattr(whole, which)) for which in ("train", "val", "test")})
