"""``python -m metagrad`` is the ``metagrad`` command."""

from metagrad.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
