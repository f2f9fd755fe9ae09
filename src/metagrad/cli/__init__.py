"""The ``metagrad`` command."""
