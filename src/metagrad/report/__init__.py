"""One page that shows what runs did."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from metagrad.report.runs import write as write

__all__ = ["write"]


def __getattr__(name: str) -> object:
    """Import the page's parts on first use: the command line needs only the light ones."""
    if name == "write":
        from metagrad.report.runs import write

        return write
    raise AttributeError(f"module 'metagrad.report' has no attribute {name!r}")
