"""`python -m mixsyn_fast.models.training <model> [options]`, the form that torchrun starts; see command.py."""

import sys

from .command import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
