"""Ctrl-C that loses nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from metagrad.cli.signals import NUMBERS
from metagrad.cli.text import say


class Interrupt:
    """Ctrl-C asks the loop to save and stop; a second one stops at once.

    What is ignored stays so. In a thread other than the main one, where Python allows no handlers, nobody asks.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Callable[[], bool]:
        self._asked = False
        try:
            for number in NUMBERS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._ask)
        except ValueError:  # not the main thread
            pass
        return lambda: self._asked

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            before = self._former[number]
            if not callable(before):
                raise KeyboardInterrupt
            before(number, frame)  # raises it, at a moment that bears it
            return
        self._asked = True
        if not self._quiet:
            say("saving after this meta-step; once more stops at once")


def until(hours: float | None, stop: Callable[[], bool]) -> Callable[[], bool]:
    """Return a ``stop`` that is also true after so many hours from now; ``None``: without such an end."""
    if hours is None:
        return stop
    end = time.monotonic() + 3600 * hours
    return lambda: stop() or time.monotonic() > end
