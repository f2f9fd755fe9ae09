"""Omniglot as one file of a few megabytes, for a machine that has torch and numpy only.

    python benchmarks/pack_omniglot.py --data-dir DIR         # writes packed/omniglot.npz

DIR holds the official archives (``omniglot/images_background.zip`` and ``images_evaluation.zip``). Classes, splits and
pixels are those of training itself; :func:`unpack` gives the same ``Dataset`` back, and packing checks it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from metagrad.data import Dataset, ImageClasses, load
from metagrad.errors import MetagradError
from metagrad.files import write_atomically

SPLITS = ("train", "val", "test")


def pack(dataset: Dataset, path: Path) -> None:
    """Write a data set; its pictures stay uint8, or become bits where they have two values only."""
    facts = {name: getattr(dataset, name) for name in ("name", "rotations", "preprocessing", "digest")}
    arrays: dict[str, np.ndarray] = {}
    for split in SPLITS:
        classes: ImageClasses = getattr(dataset, split)
        images = classes.images.numpy()
        bits = bool(np.isin(images, (0, 255)).all())
        arrays[f"{split}_images"] = np.packbits(images > 0) if bits else images
        arrays[f"{split}_shape"] = np.array(images.shape)
        arrays[f"{split}_counts"] = classes.counts.numpy()
        arrays[f"{split}_names"] = np.array(classes.names)

    def write(target: Path) -> None:
        with target.open("wb") as file:  # given a name, numpy would add an ending to it
            np.savez_compressed(file, facts=np.array(json.dumps(facts)), **arrays)

    write_atomically(path, write, refused=lambda error: MetagradError(f"cannot write {path} ({error.strerror})"))


def unpack(path: Path) -> Dataset:
    """Read what :func:`pack` wrote.

    Raises
    ------
    MetagradError
        if there is no such file.
    """
    if not path.is_file():
        raise MetagradError(f"there is no {path}: make it with python benchmarks/pack_omniglot.py --data-dir DIR")
    with np.load(path, allow_pickle=False) as held:
        facts = json.loads(str(held["facts"]))
        parts = {}
        for split in SPLITS:
            images, shape = held[f"{split}_images"], tuple(held[f"{split}_shape"].tolist())
            if images.shape != shape:
                images = np.unpackbits(images, count=int(np.prod(shape))).reshape(shape) * np.uint8(255)
            names = tuple(str(name) for name in held[f"{split}_names"])
            parts[split] = ImageClasses(torch.from_numpy(images), torch.from_numpy(held[f"{split}_counts"]), names)
    return Dataset(**facts, **parts)


def main() -> None:
    """Pack, read again, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder with the official archives (else METAGRAD_DATA)")
    parser.add_argument("--out", type=Path, default=Path("packed/omniglot.npz"))
    options = parser.parse_args()
    dataset = load("omniglot", data_dir=options.data_dir)
    pack(dataset, options.out)
    again = unpack(options.out)
    for split in SPLITS:
        one, other = getattr(dataset, split), getattr(again, split)
        if one.names != other.names or not torch.equal(one.images, other.images):
            raise SystemExit(f"{options.out} does not give back the {split} split")
        print(f"{split:5s} {len(one.names)} classes, {len(one.images)} images")
    print(f"{options.out}: {options.out.stat().st_size / 2**20:.1f} MiB, digest {dataset.digest[:16]}")


if __name__ == "__main__":
    main()
