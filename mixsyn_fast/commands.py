"""What all commands have in common: parsers, and how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

# What a user can mend ends with its message alone.
_USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)


def make_parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser as all commands have it: no abbreviations, descriptions as written."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog, description=description, formatter_class=form, allow_abbrev=False)


def guarded(command: Callable[[], int]) -> int:
    """Run a command; bad input is said on stderr and gives status 2.

    With MIXSYN_FAST_TRACEBACK=1 the exception itself is raised.
    """
    try:
        return command()
    except _USER_ERRORS as error:
        if os.environ.get("MIXSYN_FAST_TRACEBACK"):
            raise
        print(f"mixsyn-fast: {error}", file=sys.stderr)
        return 2
