"""Pictures, a network, and a store of its features, for the tests of the store."""

import hashlib

import numpy as np
import torch

from metagrad.data.feature_store import FeatureStore

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 3, 6, 6), dtype=np.uint8))
KEYS = [hashlib.sha256(image.numpy().tobytes()).digest() for image in IMAGES]
WEIGHTS = torch.from_numpy(np.random.default_rng(1).normal(size=(108, 7)).astype(np.float32))


def network(batch):
    """Give seven numbers for each picture, each by itself: the digits of a product depend on what is beside it."""
    return torch.stack([image.float().flatten() @ WEIGHTS for image in batch])


TRUTH = network(IMAGES)


class Counted:
    """A network and its pictures, which note what they are asked for."""

    def __init__(self, chosen=range(40)):
        self.chosen = list(chosen)
        self.keys = [KEYS[n] for n in self.chosen]
        self.truth = TRUTH[self.chosen]
        self.loaded, self.batches = [], []

    def load(self, numbers):
        self.loaded += numbers
        return IMAGES[[self.chosen[n] for n in numbers]]

    def compute(self, batch):
        self.batches.append(len(batch))
        return network(batch)

    def features(self, store, **options):
        return store.features(self.keys, self.load, self.compute, **options)


def opened(folder, digest="a", **options):
    return FeatureStore.open(digest, shape=(7,), directory=folder, **options)


def file_of(folder, name):
    (found,) = folder.glob(f"v1-*/{name}")
    return found
