"""Measure StyleFusion in use: one slider move, codes of a region to the next frame.

    python -m benchmarks.run_stylefusion [--size 256] [--channel-base 16384] [--hidden 1536] [--repeat N] [--cpu avx2]

The tree of faces over a StyleGAN2 with random weights (the work is that of trained ones). The code of one leaf moves to and
fro:

* published: every FusionNet, layer by layer, and the generator with weights per sample, in plain PyTorch;
* full: ours, every FusionNet anew, and the generator;
* ours: `StyleFusion.fuse`: the FusionNets between the leaf and the root alone, and the generator;
* floor: the generator alone, of a code that is there.

Gate: the image of a move before it becomes bytes, by the rule of mixsyn_fast/measure/gate.py; ours and full are
bit-identical.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mixsyn_fast.models.plain import dense_reference
from mixsyn_fast.models.sheets import to_uint8
from mixsyn_fast.models.stylefusion.model import StyleFusion
from mixsyn_fast.models.stylefusion.networks import make_net
from mixsyn_fast.models.stylefusion.trees import FACES
from mixsyn_fast.models.stylegan2 import Config, Generator
from torch import Tensor

from mixsyn_fast.measure.clock import Call, interleave
from mixsyn_fast.measure.gate import gate
from mixsyn_fast.progress import progress
from mixsyn_fast.runtime import keep_memory
from mixsyn_fast.writing import jsonable

from . import cpu, schema, tables
from .run_training import merged
from .schema import RESULTS, Measured
from .timing import heading, machine_line, save

LEAVES = ("eyes", "mouth", "hair")


def model_of(options: argparse.Namespace) -> StyleFusion:
    """Return a StyleFusion whose weights make every part count."""
    torch.manual_seed(0)
    generator = Generator(Config(size=options.size, channel_base=options.channel_base))
    generator.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for name, value in generator.named_parameters():
            if name.endswith(("noise.weight", "activate.bias")):
                value.normal_(std=0.3)
    nets = {node: make_net(generator, options.hidden, 5, "b", True) for node in FACES.tree}
    return StyleFusion(generator, FACES, nets)


def image_of(fusion: StyleFusion, codes: Mapping[str, Tensor], plain: bool = False) -> Tensor:
    """Return the image (1, 3, H, W) of codes, every node anew."""
    dtype = fusion.generator.input.input.dtype
    given = {name: value[None].to(dtype) for name, value in codes.items()}
    with torch.no_grad():
        if plain:
            with dense_reference():
                return fusion.generator.synthesis(fusion.hierarchy(given))
        return fusion.generator.synthesis(fusion.hierarchy(given))


def measure(
    fusion: StyleFusion, plain: StyleFusion, double: StyleFusion, leaf: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the row of a leaf's slider; `plain` has NCHW weights, `double` float64 ones."""
    base = dict(zip(fusion.nodes, (fusion.code(i) for i in range(len(fusion.nodes))), strict=True))
    ends = (base, base | {leaf: fusion.code(100)})
    with progress(f"gates of {leaf}"):
        exact = {"image": image_of(double, ends[1], True)}
        found = {"published": image_of(plain, ends[1], True)}
        fusion.generate(codes=ends[0])
        made = fusion.generate(codes=ends[1])
        with torch.no_grad():
            found["ours"] = fusion.generator.synthesis(made.s[None])
        fusion._forget()
        again = fusion.generate(codes=ends[1])
        if not torch.equal(again.s, made.s) or not np.array_equal(again.image, made.image):
            raise ValueError(f"{leaf}: expected a move to give the image of a full pass bit for bit")
        reference = {"image": found["published"]}
        verdicts = {name: gate({"image": value}, reference, exact) for name, value in found.items()}
        verdicts["full"] = verdicts["ours"]
    turns: dict[str, Iterator[dict[str, Tensor]]] = {n: itertools.cycle(ends) for n in ("published", "full", "ours")}

    def full() -> object:
        fusion._fused.clear()
        return fusion.generate(codes=next(turns["full"]))

    def floor() -> object:
        with torch.no_grad():
            return to_uint8(fusion.generator.synthesis(made.s[None]))

    held = copy.copy(fusion)  # what ours remembers is not what full forgets
    held._fused = {}
    calls: dict[str, Call] = {
        "published": lambda: to_uint8(image_of(plain, next(turns["published"]), True)),
        "full": full,
        "ours": lambda: held.generate(codes=next(turns["ours"])),
        "floor": floor,
    }
    calls = {name: call for name, call in calls.items() if name == "floor" or verdicts[name].passed}
    with progress(f"timing {leaf}"):
        timings = interleave(calls, repeat=options.repeat, warmup=2, budget_s=options.seconds)
    entries = {}
    for name in (*verdicts, "floor"):
        verdict = verdicts.get(name)
        wrong = "" if verdict is None or verdict.passed else f"wrong result: {verdict.what} off by {verdict.error:.1e}"
        entries[name] = Measured(gate=verdict, timing=timings.get(name), note=wrong)
    fused = fusion.tree.ancestors(leaf)
    return schema.row(
        op="stylefusion",
        case=f"stylefusion/move of {leaf}, {options.size}",
        mode="forward",
        settings={"size": options.size, "channel_base": options.channel_base, "hidden": options.hidden, "leaf": leaf},
        contenders=entries,
        baseline="published",
        facts={"fused": list(fused), "nodes": len(fusion.tree.tree)},
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line -> options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_stylefusion", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", type=int, default=256, help="side of the image (default %(default)s)")
    parser.add_argument("--channel-base", type=int, default=16384, help="16384: channel multiplier 1 (default)")
    parser.add_argument(
        "--hidden", type=int, default=1536, help="width of the FusionNets (default %(default)s, the paper's)"
    )
    parser.add_argument("--repeat", type=int, default=9, help="rounds (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="soft limit for the timing of a row (default 60)")
    cpu.add_option(parser)
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown at the end")
    parser.add_argument("--out", type=Path, help="JSON (default benchmarks/results/stylefusion_cpu.json)")
    options = parser.parse_args(arguments)
    options.out = options.out or RESULTS / f"stylefusion_{cpu.suffix(torch.device('cpu'), options.cpu)}.json"
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measured point."""
    options = parse(arguments)
    try:
        cpu.restrict(options.cpu)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    keep_memory()  # for every contender alike
    result = heading("stylefusion", labels="", repeat=options.repeat)
    print(machine_line(result["machine"]))
    start = time.perf_counter()
    fusion = model_of(options)
    plain, double = copy.deepcopy(fusion), copy.deepcopy(fusion)
    plain.generator.to(memory_format=torch.contiguous_format)
    double.generator.double()
    double.hierarchy.double()
    result["rows"] = jsonable([measure(fusion, plain, double, leaf, options) for leaf in LEAVES])
    result["seconds"] = round(time.perf_counter() - start, 1)
    for row in result["rows"]:
        print(tables.row_line(row))
    if options.out.is_file():
        result["rows"] = merged(schema.load(options.out), result)
    result |= tables.faults(result["rows"])
    save(result, options.out)
    print(tables.render(result, markdown=options.markdown))
    print(tables.conclusion(result, result["rows"]))
    print(f"written: {options.out}")
    return 1 if result["losses"] or result["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
