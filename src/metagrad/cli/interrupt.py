"""Ctrl-C without losing work."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from metagrad.cli.signals import NUMBERS
from metagrad.cli.text import say


class Interrupt:
    """Ctrl-C lets the loop save and stop after the current meta-step; a second one stops at once.

    A signal that is ignored stays ignored. Outside the main thread, where Python allows no handlers, this does nothing.
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
            before(number, frame)  # raises KeyboardInterrupt, outside of an import
            return
        self._asked = True
        if not self._quiet:
            say("will save and stop after this meta-step; interrupt again to stop at once")


def until(hours: float | None, stop: Callable[[], bool]) -> Callable[[], bool]:
    """Return a ``stop`` that is also true after so many hours from now; ``None``: without such an end."""
    if hours is None:
        return stop
    end = time.monotonic() + 3600 * hours
    return lambda: stop() or time.monotonic() > end
