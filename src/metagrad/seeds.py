"""Independent streams of random numbers from one seed, one for each purpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

Stream = Literal["weights", "tasks", "validation", "test", "task set", "moved"]

RULE = 2
# A stream's position decides its numbers: add names at the end, and remove none.
_STREAMS: tuple[Stream, ...] = ("weights", "tasks", "validation", "test", "task set", "moved")
_FIRST_RULE = {"validation": 1, "test": 2, "moved": 2**32}  # added to the seed; the others take the seed itself


@dataclass(frozen=True)
class Seeds:
    """Independent streams of one seed, by name.

    ``seed + 1`` for a second stream would not do: it is the first stream of the run with the next seed. And one seed
    for two streams gives both the same numbers.

    Parameters
    ----------
    seed:
        the user's seed.
    rule:
        2: streams are the children of ``numpy.random.SeedSequence(seed)``. 1, for runs from before there was a choice:
        the seed itself for weights, tasks and task set, ``seed + 1`` to validate, ``seed + 2`` to test.
    """

    seed: int
    rule: int = RULE

    def of(self, stream: Stream, step: int | None = None) -> int:
        """Return the seed of a stream; with ``step``, of a separate stream for that step."""
        if self.rule == 1:
            return self.seed + _FIRST_RULE.get(stream, 0) + (step or 0)
        place = (_STREAMS.index(stream),) if step is None else (_STREAMS.index(stream), step)
        return int(np.random.SeedSequence(self.seed, spawn_key=place).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def generator(self, stream: Stream, device: torch.device | str = "cpu", step: int | None = None) -> torch.Generator:
        """Return a generator at the beginning of a stream."""
        return torch.Generator(device).manual_seed(self.of(stream, step))
