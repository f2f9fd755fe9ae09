"""What a person, rather than a programmer, is meant to read: exceptions and a warning."""


class MetagradError(Exception):
    """Something a user can put right; the message is one line and says how.

    The command line prints the message and exits with code 2. Programming errors (wrong shapes or types
    handed to the library) stay ``ValueError`` and ``TypeError``.
    """


class DivergedError(MetagradError, ArithmeticError):
    """An iteration grew where it should have shrunk; the message names the step size and the largest stable one."""


class NotFiniteError(MetagradError, ValueError):
    """What was handed in, or the objective there, holds NaN or infinite numbers; the message says where."""


class MetagradWarning(UserWarning):
    """Something a person should know that does not stop the work; the command prints it in one line."""


def in_short(said: object, most: int = 200) -> str:
    """Return what an error or a value says in one line of at most ``most`` characters."""
    text = " ".join(str(said).split()) or type(said).__name__
    return text if len(text) <= most else f"{text[: most - 3]}..."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, a GPU's, or that of torch's allocator on the CPU."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        said in text for said in ("out of memory", "can't allocate memory", "not enough memory", "defaultcpuallocator")
    )
