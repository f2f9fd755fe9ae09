"""Backbones of a user's own that tests name: small networks that give features."""

import torch
from torch import nn
from torch.nn import functional as F


def _unit(inputs, outputs, stride=2):
    norm = nn.BatchNorm2d(outputs)
    nn.init.uniform_(norm.running_mean, -0.5, 0.5)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.uniform_(norm.weight, 0.5, 2)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm, nn.ReLU())


class Stages(nn.Module):
    """Three stages, then flattened by a function: children run one after another but for that."""

    image_size = 16
    mean = (0.5, 0.4, 0.3)
    std = (0.2, 0.3, 0.4)

    def __init__(self):
        super().__init__()
        self.stem = _unit(3, 8)
        self.stage1 = nn.Sequential(_unit(8, 8, 1), _unit(8, 8, 1))
        self.stage2 = nn.Sequential(_unit(8, 12), _unit(12, 12, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        return self.pool(self.stage2(self.stage1(self.stem(x)))).flatten(1)


class Pooled(Stages):
    """Pools in a function, too."""

    def __init__(self):
        super().__init__()
        del self.pool
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.stage2(self.stage1(self.stem(x))), 1).flatten(1)
        return self.drop(x)


class Nested(nn.Module):
    """Its stages lie in one sequence."""

    image_size = 16

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            _unit(3, 8),
            nn.Sequential(_unit(8, 8), _unit(8, 8)),
            nn.Sequential(_unit(8, 10), _unit(10, 10)),
            _unit(10, 12),
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x):
        return self.pool(self.features(x))


class Crossed(Stages):
    """A later part sees what an earlier one took."""

    def forward(self, x):
        x = self.stem(x)
        return self.pool(self.stage2(x + self.stage1(x))).flatten(1)


class Batchwise(Stages):
    """Norms look at the other pictures of the batch, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.stem[1] = nn.BatchNorm2d(8, track_running_stats=False)


class Shared(Stages):
    """The first and the last stage share a convolution."""

    def __init__(self):
        super().__init__()
        self.stage2 = nn.Sequential(self.stage1[0], _unit(8, 12))


class Half(Stages):
    """Its owner froze the stem."""

    def __init__(self):
        super().__init__()
        self.stem.requires_grad_(False)


class BadSize(Stages):
    image_size = "large"


class BadMean(Stages):
    mean = (0.5, 0.5)


class BadStd(Stages):
    std = (0.5, 0.0, 0.5)


class NotFlat(Stages):
    def forward(self, x):
        return self.stem(x)


class Grey(Stages):
    def __init__(self):
        super().__init__()
        self.stem = _unit(1, 8)


def random():
    """Give other weights at each call, were it not for the seed."""
    return Stages()


def kept():
    """Give the same module at each call."""
    return KEPT


def fails():
    raise RuntimeError("no such file\nof weights")


def number():
    return 3


def plain():
    """Say nothing of its images."""
    return nn.Sequential(nn.Conv2d(3, 4, 16, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


with torch.random.fork_rng(devices=[]):
    KEPT = Stages().train()
