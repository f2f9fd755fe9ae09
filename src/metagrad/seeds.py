"""From one seed to a stream of random numbers for each thing that is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

Stream = Literal["weights", "tasks", "validation", "test", "task set", "moved"]

RULE = 2
# A stream's place is part of what a seed means: names are added at the end, and none is taken out.
_STREAMS: tuple[Stream, ...] = ("weights", "tasks", "validation", "test", "task set", "moved")
_FIRST_RULE = {"validation": 1, "test": 2, "moved": 2**32}  # added to the seed; of all others the seed itself


@dataclass(frozen=True)
class Seeds:
    """Independent streams of one seed, by name.

    ``seed + 1`` for the next thing would not do: it is the first thing's seed of the neighbouring run. And one seed for
    two things gives both the same numbers.

    Parameters
    ----------
    seed:
        what a person chose.
    rule:
        2: streams are the children of ``numpy.random.SeedSequence(seed)``. 1: the seed itself for weights, tasks and
        task set, ``seed + 1`` to validate, ``seed + 2`` to test, as runs were made before there was a choice. These go
        on as they began.
    """

    seed: int
    rule: int = RULE

    def of(self, stream: Stream, step: int | None = None) -> int:
        """Return the seed of a stream, or of its own stream at a ``step``."""
        if self.rule == 1:
            return self.seed + _FIRST_RULE.get(stream, 0) + (step or 0)
        place = (_STREAMS.index(stream),) if step is None else (_STREAMS.index(stream), step)
        return int(np.random.SeedSequence(self.seed, spawn_key=place).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def generator(self, stream: Stream, device: torch.device | str = "cpu", step: int | None = None) -> torch.Generator:
        """Return a generator at the beginning of a stream."""
        return torch.Generator(device).manual_seed(self.of(stream, step))
