"""Ctrl-C that loses nothing."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable


class Interrupt:
    """Ctrl-C asks the loop to save and stop; a second one stops at once."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet

    def __enter__(self) -> Callable[[], bool]:
        self._asked = False
        self._former = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return lambda: self._asked

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        if not self._quiet:
            print("saving after this meta-step; once more stops at once", file=sys.stderr)
