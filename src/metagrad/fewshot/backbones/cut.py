"""Where a network is cut before its last block."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def cut(network: nn.Module, image_size: int) -> tuple[list[nn.Module], list[nn.Module]] | None:
    """Return the parts before the last block, and those from it on; ``None`` if the network is no sequence of parts.

    That running the parts one after another gives what the network gives is not assumed but looked at, with random
    images. The last block is the last part of several layers, such as the last stage of a residual network, and all
    that comes after it.
    """
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(images)
        parts = _sequence(network, images, expected)
        if parts is None:
            return None
        while True:
            place = _last_block(parts)
            block = parts[place]
            if sum(map(_layers, parts[:place])) > 1 or not _is_sequence(block):
                break  # enough comes before it, or it is one piece
            parts = [*parts[:place], *_children(block), *parts[place + 1 :]]
        before, after = parts[:place], parts[place:]
        shared = {id(leaf) for part in before for leaf in part.parameters()}
        if not any(map(_layers, before)) or any(id(leaf) in shared for part in after for leaf in part.parameters()):
            return None
        return (before, after) if _agrees(parts, images, expected) else None


def _last_block(parts: list[nn.Module]) -> int:
    """Return the place of the last part with several layers; of the last with one, where none has more."""
    counts = [_layers(part) for part in parts]
    wanted = 2 if max(counts, default=0) > 1 else 1
    return max((place for place, count in enumerate(counts) if count >= wanted), default=0)


def _layers(part: nn.Module) -> int:
    """Return how many weight matrices (or convolution kernels) a part has."""
    return sum(leaf.dim() > 1 for leaf in part.parameters())


def _sequence(network: nn.Module, images: Tensor, expected: Tensor) -> list[nn.Module] | None:
    """Return the children of a network, and what it does between them that is no module: flattening, pooling."""
    children = _children(network)
    if not children:
        return None
    flat, pool = [nn.Flatten()], [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for between in ([], flat, pool):
        for place in (len(children), len(children) - 1) if between else (len(children),):
            parts = [*children[:place], *between, *children[place:]]
            if _agrees(parts, images, expected):
                return parts
    return None


def _agrees(parts: list[nn.Module], images: Tensor, expected: Tensor) -> bool:
    through = images
    try:
        for part in parts:
            through = part(through)
            if not isinstance(through, Tensor) or len(through) != len(images):
                return False
    except Exception:  # a part takes something else than the one before it gives
        return False
    return through.shape == expected.shape and torch.allclose(
        through, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item()
    )


def _is_sequence(part: nn.Module) -> bool:
    return isinstance(part, nn.Sequential) and type(part).forward is nn.Sequential.forward and len(part) > 1


def _children(network: nn.Module) -> list[nn.Module]:
    """Return the children in order; one that stands in two places twice."""
    return [child for child in network._modules.values() if child is not None]
