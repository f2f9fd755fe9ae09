"""The ``metagrad`` command: streams and signals are looked after before the command line is even imported."""

from metagrad.cli.signals import interruptible
from metagrad.cli.streams import open_missing


def main() -> int:
    """Run the command line of this process; return the exit code."""
    open_missing()
    return interruptible(_run, last=True)


def _run() -> int:
    from metagrad.cli.main import run

    return run()


if __name__ == "__main__":
    raise SystemExit(main())
