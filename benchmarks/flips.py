"""Whether flipped and enlarged pictures help to adapt on frozen features: paired over tasks, nearest class mean.

    python benchmarks/flips.py FOLDER          # FOLDER: class folders with the same number of photographs each

Features are those of ``adapt photos``: centred, of unit length. 200 tasks of 5 classes, 10 queries of each. "flip": a
support picture and its mirror image count alike. "flip + crop": its enlarged middle (0.85) too. "flip both": queries
have the sum of the features of both.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

import metagrad.fewshot.backbones
from metagrad.classifier.learner import Learner

_CENTRE = Path(metagrad.fewshot.backbones.__file__).parent / "efficientnet-lite0-centre.safetensors"
_TASKS, _QUERIES = 200, 10


def enlarged(images: Tensor, part: float = 0.85) -> Tensor:
    """Return the middle of uint8 images, enlarged to their size."""
    size = images.shape[-1]
    begin = (size - int(size * part)) // 2
    middle = images[..., begin : size - begin, begin : size - begin].float()
    return F.interpolate(middle, (size, size), mode="bicubic").clamp(0, 255).to(images.dtype)


def main() -> None:
    """Print the accuracy of each, and its gain over plain pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    learner, centre = Learner.of(Path("photos")), load_file(_CENTRE)["centre"]
    classes = [sorted(one.iterdir()) for one in sorted(parser.parse_args().folder.iterdir())]
    images = torch.from_numpy(np.stack([learner.reading(file.read_bytes()) for some in classes for file in some]))

    def features(some: Tensor) -> Tensor:
        rows = torch.cat([learner.network_inputs(part) for part in some.split(128)])
        return F.normalize(F.normalize(rows, dim=-1) - centre, dim=-1).view(len(classes), len(classes[0]), -1)

    views = [features(images), features(images.flip(-1)), features(enlarged(images))]
    generator, each, ways = torch.Generator().manual_seed(0), torch.arange(5)[:, None], torch.arange(5)
    for shots in (1, 5):
        right: dict[str, list[float]] = {}
        for _ in range(_TASKS):
            chosen = torch.randperm(len(classes), generator=generator)[:5]
            order = torch.stack([torch.randperm(len(classes[0]), generator=generator) for _ in range(5)])
            support = [view[chosen][each, order[:, :shots]] for view in views]
            query = [view[chosen][each, order[:, shots : shots + _QUERIES]].flatten(0, 1) for view in views]
            both = query[0] + query[1]
            for name, parts, asked in (
                ("plain", support[:1], query[0]),
                ("flip", support[:2], query[0]),
                ("flip + crop", support, query[0]),
                ("flip both", support[:2], both),
            ):
                means = F.normalize(torch.cat(parts, 1).mean(1), dim=-1)
                found = (asked @ means.T).argmax(-1) == ways.repeat_interleave(_QUERIES)
                right.setdefault(name, []).append(float(found.float().mean()))
        plain = torch.tensor(right["plain"])
        for name, scores in right.items():
            gap = torch.tensor(scores) - plain
            gain = f"{100 * gap.mean():+.2f} ± {196 * gap.std() / len(gap) ** 0.5:.2f}"
            print(f"{shots}-shot, {name}: {100 * (plain + gap).mean():.2f} %, gained {gain}", flush=True)


if __name__ == "__main__":
    main()
