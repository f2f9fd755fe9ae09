"""The one exception type that a person, rather than a programmer, is meant to read."""


class MetagradError(Exception):
    """Something a user can put right; the message is one line and says how.

    The command line prints the message and exits with code 2. Programming errors (wrong shapes or types
    handed to the library) stay ``ValueError`` and ``TypeError``.
    """
