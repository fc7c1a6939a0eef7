"""The command `mixsyn-fast`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from .commands import guarded, make_parser

# words of the command -> (module with add_arguments(parser) and main(options), one line of help)
_COMMANDS = {
    "doctor": ("mixsyn_fast.doctor", "versions, build, cache, and for every op and device what would run and why"),
    "demo": ("mixsyn_fast.models.demo.command", "new pictures composed from several ones, and what the fast kernels gain"),
    "compose": ("mixsyn_fast.models.mixsyn.compose", "a new picture from regions of several ones"),
    "edit": ("mixsyn_fast.models.mixsyn.edit", "replace regions of a picture step by step"),
    "diversity": ("mixsyn_fast.models.mixsyn.diversity", "a grid of random combinations of some pictures' regions"),
    "data inspect": ("mixsyn_fast.models.data.inspect", "classes, bad files and a contact sheet of a data set"),
    "evaluate compositions": ("mixsyn_fast.models.mixsyn.evaluate", "Table 1 of MixSyn: compositions and images of a model"),
    "evaluate": ("mixsyn_fast.models.evaluation.evaluate", "PSNR, SSIM, LPIPS, FID ... of outputs or of a trained model"),
    "parse": ("mixsyn_fast.models.evaluation.parse", "label maps of your own face photos"),
}
_TRAIN = ("train <model>", "train a model on a data set (train --help lists the models)")


def _refuse_or_help(argv: list[str]) -> NoReturn:
    """Answer --version, --help, and what is no command."""
    from . import __version__

    commands = [*((words, text) for words, (_, text) in _COMMANDS.items()), _TRAIN]
    parser = make_parser("mixsyn-fast", __doc__)
    parser.usage = "mixsyn-fast [--version] <command> [options]"
    parser.epilog = "commands (each has --help):\n" + "\n".join(f"  {words:<21} {text}" for words, text in commands)
    parser.add_argument("--version", action="version", version=f"mixsyn_fast {__version__}")
    parser.parse_args([word for word in argv[:1] if word.startswith("-")])
    parser.error(f"expected a command ({', '.join(words for words, _ in commands)}), got {' '.join(argv[:2]) or 'nothing'}")


def _run(argv: list[str]) -> int:
    if argv[:1] == ["train"]:
        command = importlib.import_module("mixsyn_fast.models.training.command")
        return int(command.run(argv[1:]))
    for words, (module, _) in _COMMANDS.items():
        length = len(words.split())
        if argv[:length] == words.split():
            command = importlib.import_module(module)
            parser = make_parser(f"mixsyn-fast {words}", command.__doc__)
            command.add_arguments(parser)
            return int(command.main(parser.parse_args(argv[length:])))
    _refuse_or_help(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after the program's name; ``sys.argv[1:]`` when absent.

    Returns:
        The exit status: 0, 1 (the command ran and found something wrong), 2 (bad input, said on stderr; with
        MIXSYN_FAST_TRACEBACK=1 the exception itself is raised).
    """
    return guarded(lambda: _run(list(sys.argv[1:] if argv is None else argv)))


if __name__ == "__main__":
    raise SystemExit(main())
