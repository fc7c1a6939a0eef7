"""One file per op: the plain PyTorch forms that it is measured against, and its small row. Found by themselves."""

from __future__ import annotations

import importlib
import pkgutil

from ..contest import OpContest

_FILES = [file.name for file in pkgutil.iter_modules(__path__) if not file.name.startswith("_")]
CONTESTS: dict[str, type[OpContest]] = {name: importlib.import_module(f"{__name__}.{name}").CONTEST for name in _FILES}
