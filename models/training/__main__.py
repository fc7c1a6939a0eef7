"""`python -m mixsyn_fast.models.training <model> [options]`, the form that torchrun starts; see command.py."""

import sys

from mixsyn_fast.commands import guarded

from .command import run

if __name__ == "__main__":
    sys.exit(guarded(lambda: run(sys.argv[1:])))
