"""What all commands have in common: how they begin and how they end."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

# What a user can mend ends with its message alone.
_USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)


def run_command(command: ModuleType, words: Sequence[str], prog: str) -> int:
    """Run a command: a module with a dataclass ``Options`` and ``main(options) -> exit status``.

    Args:
        command: the module; its docstring is the help.
        words: of the command line after the command.
        prog: the command as a user writes it.

    Raises:
        ValueError, OSError, ImportError: what :func:`mixsyn_fast.models.settings.read` or the command finds; a field at the
            beginning of the message is written as its option.
        SystemExit: help (0), or words that no option takes (2).
    """
    kind = command.Options
    options = _flags_alone(kind, words)
    if options is None:
        settings = importlib.import_module("mixsyn_fast.models.settings")
        options, only_print = settings.read(kind, words, prog=prog, description=command.__doc__)
        if only_print:
            print(settings.dumps(options))
            return 0
    try:
        return int(command.main(options))
    except (ValueError, OSError) as error:
        message = str(error)
        spelled = importlib.import_module("mixsyn_fast.models.settings").spelled(message, kind)
        if spelled == message:
            raise
        raise (FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError)(spelled) from error


def _flags_alone(kind: type, words: Sequence[str]) -> Any:
    """Return the options that nothing but flags, or nothing, describes; else None.

    These need no parser: `doctor` starts at once, and answers where what parses options is not installed.
    """
    flags = {f"--{field.name.replace('_', '-')}": field.name for field in dataclasses.fields(kind) if field.default is False}
    return kind(**{flags[word]: True for word in words}) if all(word in flags for word in words) else None


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
