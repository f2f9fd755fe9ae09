"""User-facing exceptions and warning."""


class MetagradError(Exception):
    """An error that the user can fix; the message is one line and says how.

    The command line prints the message and exits with code 2. Programming errors (arguments of wrong shapes or types)
    stay ``ValueError`` and ``TypeError``.
    """


class DivergedError(MetagradError, ArithmeticError):
    """An iteration grew where it should have shrunk; the message names the step size and the largest stable one."""


class NotFiniteError(MetagradError, ValueError):
    """An argument, or the objective at it, holds NaN or infinite numbers; the message says where."""


class NotFiniteDataError(NotFiniteError):
    """The examples of a task hold NaN or infinite numbers: no setting of the training helps."""


class MetagradWarning(UserWarning):
    """A warning for the user; the command prints it in one line."""


def in_short(value: object, most: int = 200) -> str:
    """Return the text of an error or a value in one line of at most ``most`` characters."""
    text = " ".join(str(value).split()) or type(value).__name__
    return text if len(text) <= most else f"{text[: most - 3]}..."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, a GPU's, or that of torch's allocator on the CPU."""
    text = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "not enough memory", "defaultcpuallocator")
    return isinstance(error, MemoryError) or any(sign in text for sign in signs)
