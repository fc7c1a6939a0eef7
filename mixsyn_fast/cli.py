"""The command ``mixsyn-fast``: ``doctor`` (what runs where, and why) and ``demo`` (see it work)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = argparse.ArgumentParser(prog="mixsyn-fast", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"mixsyn_fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    doctor = commands.add_parser(
        "doctor",
        allow_abbrev=False,
        help="versions, build, cache, and for every op and device the backend that would run and why",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    commands.add_parser(
        "demo",
        add_help=False,
        help="a generator in its plain and its fast form, timed (demo --help for options)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    Args:
        argv: the arguments after the program's name; ``sys.argv[1:]`` when absent.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["demo"]:  # its options are its own
        from . import demo

        return int(demo.main(arguments[1:]) or 0)
    options = _parser().parse_args(arguments)
    from . import doctor

    return doctor.main(as_json=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
