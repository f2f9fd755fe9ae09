"""Batches of pictures, loaded in one thread while another computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from metagrad.torch_modes import default_modes

Load = Callable[[list[int]], Any]

_AHEAD = 2  # batches


def load_ahead(parts: Iterable[list[int]], load: Load) -> Iterator[tuple[list[int], list[int], Tensor | None]]:
    """Load batches in another thread while their consumer works, a few ahead.

    Parameters
    ----------
    parts:
        the numbers of the pictures of each batch.
    load:
        returns a batch as a tensor or array ``(B, ...)``, or a list of B pictures, ``None`` for one that
        cannot be read.

    Yields
    ------
    tuple
        the numbers; those of them that could be read; and their pictures, ``None`` if there are none.

    Raises
    ------
    ValueError
        if ``load`` returns another number of pictures.
    """
    waiting: deque[Any] = deque()
    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            for part in parts:
                waiting.append(pool.submit(_batch, part, load))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()


def _batch(numbers: list[int], load: Load) -> tuple[list[int], list[int], Tensor | None]:
    with default_modes():
        found = load(numbers)
        if len(found) != len(numbers):
            raise ValueError(f"load must return {len(numbers)} pictures, got {len(found)}")
        if not isinstance(found, list):
            return numbers, numbers, torch.as_tensor(found)
        read = [number for number, picture in zip(numbers, found, strict=True) if picture is not None]
        pictures = [torch.as_tensor(picture) for picture in found if picture is not None]
        return numbers, read, torch.stack(pictures) if pictures else None
