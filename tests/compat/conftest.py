"""The real classes of other libraries, where `make compat` has installed them: beside the environment, not in it."""

from __future__ import annotations

import sys
from pathlib import Path

LIBRARIES = Path(__file__).parents[2] / "build" / "compat"

if LIBRARIES.is_dir():
    sys.path.append(str(LIBRARIES))  # behind the environment's own packages
