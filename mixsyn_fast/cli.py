"""The command `mixsyn-fast`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from .commands import guarded, run_command

# heading of the help -> words of a command -> (module of mixsyn_fast with Options and main(options), one line of help).
# A paper adds a heading with its verbs.
_COMMANDS = {
    "": {
        "doctor": ("doctor", "versions, build, cache, and for every op and device what would run and why"),
        "demo": ("models.demo.command", "new pictures composed from several ones, and what the fast kernels gain"),
    },
    "data, training, evaluation, for every model": {
        "data inspect": ("models.data.inspect", "classes, bad files and a contact sheet of a data set"),
        "parse": ("models.evaluation.parse", "label maps of your own face photos"),
        "train": ("models.training.command", "train <model>: on a data set (train --help lists the models)"),
        "evaluate": (
            "models.evaluation.evaluate",
            "PSNR, LPIPS, FID ... of outputs or a model; evaluate <paper>: its tables",
        ),
    },
    "MixSyn: new pictures from regions of several ones": {
        "mixsyn compose": ("models.mixsyn.compose", "a new picture from regions of several ones"),
        "mixsyn edit": ("models.mixsyn.edit", "replace regions of a picture step by step"),
        "mixsyn diversity": ("models.mixsyn.diversity", "a grid of random combinations of some pictures' regions"),
        "mixsyn study": (
            "models.mixsyn.study",
            "pairs with copy-paste for a user study, and its votes",
        ),
        "mixsyn evaluate": ("models.mixsyn.evaluate", "Table 1: compositions and images of a model"),
    },
    "Class- and layer-wise VAE: a code of every class at every level": {
        "clvae reconstruct": ("models.clvae.reconstruct", "pictures as the model makes them of their codes"),
        "clvae sample": ("models.clvae.sample", "many images of one label map"),
        "clvae stylize": ("models.clvae.stylize", "the image of a label map in the style of other pictures"),
        "clvae edit": ("models.clvae.edit", "new codes for some classes or levels, step by step; material sheets"),
        "clvae evaluate": ("models.clvae.evaluate", "Tables 1 to 5, and how local edits are; of a SPADE-VAE too"),
    },
    "MSCA: the image of a label map in the style of any scene": {
        "msca synthesize": ("models.msca.synthesize", "the image of a label map in the style of other pictures"),
        "msca swap": ("models.msca.swap", "all label maps in the styles of all pictures"),
        "msca interpolate": ("models.msca.interpolate", "mixtures of styles, on the way from one to the next"),
        "msca spatial": ("models.msca.spatial", "a style that changes from place to place, as painted"),
        "msca extrapolate": ("models.msca.extrapolate", "a whole scene in the style of a patch of it"),
        "msca attention": ("models.msca.attention", "which region gives its style to which, in maps and in words"),
        "msca evaluate": (
            "models.msca.evaluate",
            "Table 1: duplicating, mirroring, retrieving; several models side by side",
        ),
        "msca transfer": ("models.msca.transfer", "which labels hand what to which, and which are alike (Fig. 10, 12)"),
    },
    "StyleFusion: images of a code per region": {
        "stylefusion generate": ("models.stylefusion.generate", "random images, and their codes"),
        "stylefusion fuse": ("models.stylefusion.fuse", "other codes for some regions of an image, all else as it is"),
        "stylefusion pose": ("models.stylefusion.pose", "other layouts of an image"),
        "stylefusion edit": ("models.stylefusion.edit", "a latent direction, in some regions alone"),
        "stylefusion heatmap": ("models.stylefusion.heatmap", "where an image changes when the code of a region does"),
        "stylefusion invert": ("models.stylefusion.invert", "the code of your own photo"),
        "stylefusion evaluate": (
            "models.stylefusion.evaluate",
            "how local the control of a region is, against simpler ways",
        ),
        "stylefusion segments": ("models.stylefusion.cluster", "clusters of a generator's images, shown and named"),
    },
    "Harmonized transfer: styles of regions that fit the rest": {
        "harmonized transfer": ("models.harmonized.transfer", "regions of a picture in the style of another one"),
        "harmonized sample": ("models.harmonized.sample", "new styles for regions of a picture"),
        "harmonized tune": ("models.harmonized.tune", "move the style of regions step by step"),
        "harmonized reshape": ("models.harmonized.reshape", "a picture with an edited label map"),
        "harmonized recolour": ("models.harmonized.recolour", "regions in the colours of brush strokes"),
        "harmonized reconstruct": ("models.harmonized.reconstruct", "pictures as the model makes them of their codes"),
        "harmonized evaluate": ("models.harmonized.evaluate", "Tables 1 to 4, models beside each other; of SEAN too"),
        "harmonized study": ("models.harmonized.study", "randomised sheets of results for a user study, and its votes"),
    },
}
_OLD_WORDS = {
    "compose": "mixsyn compose",
    "edit": "mixsyn edit",
    "diversity": "mixsyn diversity",
    "evaluate compositions": "mixsyn evaluate",
}
_BY_WORDS = {words: module for group in _COMMANDS.values() for words, (module, _) in group.items()}


def _refuse_or_help(argv: list[str]) -> NoReturn:
    """Answer --version, --help, and what is no command."""
    from . import __version__

    listed = []
    for heading, commands in _COMMANDS.items():
        listed += [f"\n{heading}:"] if heading else []
        listed += [f"  {words:<17} {text}" for words, (_, text) in commands.items()]
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("mixsyn-fast", description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.usage = "mixsyn-fast [--version] <command> [options]"
    parser.epilog = "commands (each has --help, --config FILE and --print-config):\n" + "\n".join(listed)
    parser.add_argument("--version", action="version", version=f"mixsyn_fast {__version__}")
    parser.parse_args([word for word in argv[:1] if word.startswith("-")])
    if argv and any(words.startswith(f"{argv[0]} ") for words in _BY_WORDS):  # the first word of some
        known = [words for words in _BY_WORDS if words.startswith(f"{argv[0]} ")]
        if argv[1:2] in (["-h"], ["--help"]):
            parser.print_help()
            raise SystemExit(0)
    else:
        known = list(_BY_WORDS)
    parser.error(f"expected a command ({', '.join(known)}), got {' '.join(argv[:2]) or 'nothing'}")


def _run(argv: list[str]) -> int:
    for old, new in _OLD_WORDS.items():
        if argv[: len(old.split())] == old.split():
            print(f"mixsyn-fast {old}: now called mixsyn-fast {new}", file=sys.stderr)
            argv = [*new.split(), *argv[len(old.split()) :]]
    if argv[:1] == ["evaluate"] and f"{' '.join(argv[1:2])} evaluate" in _BY_WORDS:  # evaluate <paper>
        argv = [argv[1], "evaluate", *argv[2:]]
    for words, module in _BY_WORDS.items():
        length = len(words.split())
        if argv[:length] == words.split():
            command = importlib.import_module(f"mixsyn_fast.{module}")
            if words == "train":  # the model's name decides what options there are
                return int(command.run(argv[1:]))
            return run_command(command, argv[length:], f"mixsyn-fast {words}")
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
