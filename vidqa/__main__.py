"""Picks a face and imports it late. The only module above the faces."""

import sys

from vidqa.cli.main import run


def main() -> int:
    """Entry point of the `vidqa` command; returns the exit code."""
    return run(sys.argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
