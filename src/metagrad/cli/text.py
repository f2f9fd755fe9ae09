"""Text that is safe to print."""


def printable(text: str) -> str:
    """Return text that cannot move a terminal's cursor, change its colours or break a line."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
