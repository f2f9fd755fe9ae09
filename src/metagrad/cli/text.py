"""Text that is safe to print."""


def printable(text: str) -> str:
    """Return text that cannot move a terminal's cursor, change its colours or break a line."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def shown(text: str) -> str:
    """Return text for a table that a spreadsheet may open: what looks like a formula becomes text."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
