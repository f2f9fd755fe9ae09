"""Ctrl-C and SIGTERM that wait while modules are imported.

An exception inside an import of C++ code ends in the C++ runtime's abort; inside an import of Python code it leaves
half a module behind. Torch imports some of its own modules when they are first needed, so that no list of places is
complete. Hence the handler looks where it was called: inside an import it tries again a moment later.

This module is imported before anything else of the command and must stay light.
"""

from __future__ import annotations

import _thread
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)
_SOON = 0.02  # seconds


class Signals:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt for the length of a ``with``, but not inside an import.

    What is ignored stays so, as in a job that a shell started in the background. In a thread other than the main one,
    where Python allows no handlers, this does nothing.

    Parameters
    ----------
    last:
        whether the process ends after the ``with``: then signals are ignored from there on, since nothing is left that
        they could end sooner; else the handlers from before are put back.
    """

    def __init__(self, *, last: bool = False) -> None:
        self._last = last
        self._former: dict[int, Any] = {}
        self._held = True
        self.raised = False

    def __enter__(self) -> Signals:
        self._base = sys._getframe(1)
        self._main = _thread.get_ident()
        self._former_hook = sys.unraisablehook
        try:
            for number in NUMBERS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._came)
        except ValueError:  # not the main thread
            return self
        sys.unraisablehook = self._unraisable
        return self

    def __exit__(self, *_: object) -> None:
        self.hold()
        for number, handler in self._former.items():
            signal.signal(number, signal.SIG_IGN if self._last else handler)
        if self._former:
            sys.unraisablehook = self._former_hook
        del self._base

    def release(self) -> None:
        """Let signals through, those too that came before."""
        self._held = False

    def hold(self) -> None:
        """Keep signals back from here on."""
        self._held = True

    def _came(self, number: int, frame: FrameType | None) -> None:
        if self._held or self._importing(frame):
            _thread.start_new_thread(self._again, (number,))
        else:
            self.raised = True
            raise KeyboardInterrupt

    def _importing(self, frame: FrameType | None) -> bool:
        while frame is not None and frame is not self._base:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                return True
            frame = frame.f_back
        return False

    def _again(self, number: int) -> None:
        time.sleep(_SOON)
        if hasattr(signal, "pthread_kill"):  # the main thread may be waiting for input, and is to notice
            signal.pthread_kill(self._main, number)
        else:
            signal.raise_signal(number)

    def _unraisable(self, what: Any) -> None:
        """Raise an interrupt again that came in a destructor, where Python would print it and go on."""
        if issubclass(what.exc_type, KeyboardInterrupt):
            _thread.start_new_thread(self._again, (signal.SIGINT,))
        else:
            self._former_hook(what)


def interruptible(run: Callable[[], int], *, last: bool = False) -> int:
    """Run; return its exit code, or 130 with one line if Ctrl-C or SIGTERM ended it."""
    with Signals(last=last) as signals:
        try:
            signals.release()
            return run()
        except (Exception, KeyboardInterrupt) as error:
            signals.hold()
            # A lock that was being taken may be left so that something else complains, of a lock.
            if not signals.raised and not isinstance(error, KeyboardInterrupt):
                raise
            from metagrad.cli.text import say

            say("interrupted")
            return 130
        finally:
            signals.hold()
