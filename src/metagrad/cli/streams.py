"""Standard input, output and error as a person may have left them: closed, full, or of another encoding.

This module is imported before anything else of the command and must stay light.
"""

from __future__ import annotations

import os


def open_missing() -> None:
    """Open nothing (/dev/null) as each standard stream that is closed.

    Else the next file that is opened, a table of results, gets its number, and what C code complains of lands there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number: this one
