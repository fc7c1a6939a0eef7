"""Measure MixSyn's inference part by part: one composition of several pictures, and the edit of one region beside it.

    python -m benchmarks.run_mixsyn [--quick] [--sizes 128,256] [--sources 3] [--parts REGEX] [--repeat N] [--no-compile]
                                    [--data DIR --kind KIND] [--device cuda] [--out FILE] [options of the networks]

Contenders share weights and take turns:

* dense: plain PyTorch, the same networks under use_plan("dense") and use_backend("reference");
* compile: torch.compile of dense, its label maps prepared outside the clock;
* ours: raw labels to output, the analysis of a label map (a fresh RegionMap per picture) inside the clock, as in dense;
* floor: the generator without its region norms, with our convolutions.

Parts of a composition whose regions come in turn from `--sources` pictures: structure encoders and style encoders (one call
per picture: the encoders of all regions that are taken from it as one grouped computation), decoder (codes to soft
composition), generator (soft composition to image), all four together as `MixSyn.compose` runs them ("composition"), and
the edit of one region as `Editor.replace` does: its two codes anew, then decoder and generator. Beside them the generator
on a hard label map. Everything is eval, without gradients, batch 1, spectral norm folded, weights in channels_last and
random. The JSON is written after every row.

Gate: the rule of mixsyn_fast/measure/gate.py, dense as the reference; with a larger floor for compile. Nothing is timed
before its gate. A part in which ours is slower than dense is a LOSS, and the exit status 1 (benchmarks/tables.py).
"""

from __future__ import annotations

import argparse
import copy
import gc
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mixsyn_fast.models import settings
from mixsyn_fast.models.data import Collate, RegionDataset, open_source
from mixsyn_fast.models.mixsyn.blocks import fold_convolutions
from mixsyn_fast.models.mixsyn.compositions import Composition
from mixsyn_fast.models.mixsyn.config import Config
from mixsyn_fast.models.mixsyn.structure import StructureGenerator
from mixsyn_fast.models.mixsyn.style import StyleGenerator
from mixsyn_fast.models.plain import dense_reference, randomise, without_norms
from torch import Tensor

from mixsyn_fast.machine import time_limit
from mixsyn_fast.measure.clock import Call
from mixsyn_fast.measure.gate import Gate, gate
from mixsyn_fast.progress import progress
from mixsyn_fast.region_map import RegionMap
from mixsyn_fast.runtime import keep_memory
from mixsyn_fast.writing import jsonable

from . import cpu, schema, tables
from .schema import RESULTS, Measured
from .timing import compare, heading, machine_line, measure_rates, save

FLOOR_COMPILE = (
    1e-5  # the opponent's, of the gate: inductor's instance norms lose more, and leaving it out would do us a favour
)
Outputs = dict[str, Tensor]
Taken = Sequence[tuple[int, list[int]]]
"""(source, regions taken from it)."""


@dataclass(frozen=True)
class Networks:
    """The four functions of a model, as one contender runs them."""

    encode_structure: Callable[..., Tensor]
    encode_style: Callable[..., Tensor]
    decode: Callable[[Tensor], Tensor]
    generate: Callable[[Any, Tensor], Tensor]
    mode: Callable[[], AbstractContextManager[Any]] = nullcontext
    prepared: Sequence[RegionMap] | None = None
    """Label maps analysed before; None: a fresh one for every call."""


class MixSynBench:
    """One composition: what every part computes, for any contender.

    Args:
        config: networks of the size and the classes of the pictures.
        images: (S, 3, H, W) float32 in [-1, 1], S >= 2 sources.
        labels: (S, H, W) integer region, or -1.
        device: where to run.
        seed: of the weights.
    """

    def __init__(
        self, config: Config, images: Tensor, labels: Tensor, device: torch.device | str = "cpu", seed: int = 0
    ) -> None:
        torch.manual_seed(seed)
        self.config, self.device, self.count = config, torch.device(device), len(config.classes)
        self.structure, self.style = StructureGenerator(config), StyleGenerator(config)
        for network in (self.structure, self.style):
            randomise(network, seed)
            fold_convolutions(network)
            network.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)  # as MixSyn has them
        self.images, self.labels = images.to(self.device), labels.to(self.device)
        self.composition = in_turn(torch.cat([self.regions(s).areas() > 0 for s in range(len(images))]))
        source = self.composition.source[0].tolist()
        self.taken = [(s, [r for r, own in enumerate(source) if own == s]) for s in sorted(set(source) - {-1})]
        self.edit = self._edit(source)
        self.codes = self._both_codes(
            self.networks(dense=True), self.taken, torch.float32
        )  # what decoder and generator get, the same for everybody
        self.soft = self.structure.decode(self.codes[0])

    def regions(self, source: int) -> RegionMap:
        """A fresh region map of one picture: nothing about the labels is known yet."""
        return RegionMap(self.labels[source : source + 1], self.count, ignore_index=-1)

    def _edit(self, source: list[int]) -> tuple[int, int]:
        """Choose (picture, region) of the edit: the largest region of another picture that the composition has as well."""
        areas = torch.cat([self.regions(s).areas() for s in range(len(self.images))])
        for s, r in ((int(i) // self.count, int(i) % self.count) for i in areas.flatten().argsort(descending=True)):
            if areas[s, r] > 0 and source[r] not in (-1, s):
                return s, r
        raise ValueError("labels: expected pictures with a region in common, got none")

    def networks(self, *, dense: bool = False, double: bool = False) -> Networks:
        """Return the functions as dense or as ours; in float64 with `double`."""
        structure, style = (copy.deepcopy(n).double() if double else n for n in (self.structure, self.style))
        return Networks(structure.encode, style.encode, structure.decode, style, dense_reference if dense else nullcontext)

    def compiled(self) -> Networks:
        """Return torch.compile of dense; compilation happens at the first call."""
        torch._dynamo.reset()
        functions = (self.structure.encode, self.style.encode, self.structure.decode, self.style.forward)
        made = [torch.compile(function, dynamic=False) for function in functions]
        return Networks(*made, dense_reference, [self.regions(s) for s in range(len(self.images))])

    def floor(self) -> Networks:
        """Return ours with a generator without region norms."""
        return replace(self.networks(), generate=without_norms(self.style))

    # --- parts ----------------------------------------------------------------------------------------------------------

    def _map(self, networks: Networks, source: int) -> RegionMap:
        return self.regions(source) if networks.prepared is None else networks.prepared[source]

    def _maps(self, networks: Networks, taken: Taken) -> list[RegionMap]:
        return [self._map(networks, s) for s, _ in taken]

    def _structure_codes(self, networks: Networks, taken: Taken, maps: Sequence[RegionMap]) -> list[Tensor]:
        return [networks.encode_structure(map_, which)[0] for map_, (_, which) in zip(maps, taken, strict=True)]

    def _style_codes(self, networks: Networks, taken: Taken, maps: Sequence[RegionMap], dtype: torch.dtype) -> list[Tensor]:
        return [
            networks.encode_style(self.images[s : s + 1].to(dtype), map_, which)[0]
            for map_, (s, which) in zip(maps, taken, strict=True)
        ]

    def _placed(self, codes: Sequence[Tensor], taken: Taken, into: Tensor | None = None) -> Tensor:
        """Put codes per source at their regions: (1, N, ...), zero elsewhere or as in `into`."""
        every = codes[0].new_zeros(1, self.count, *codes[0].shape[1:]) if into is None else into.to(codes[0]).clone()
        for found, (_, which) in zip(codes, taken, strict=True):
            every[0, which] = found
        return every

    def _both_codes(
        self, networks: Networks, taken: Taken, dtype: torch.dtype, into: tuple[Tensor | None, Tensor | None] = (None, None)
    ) -> tuple[Tensor, Tensor]:
        """Encode, with one region map per picture for both kinds of encoders."""
        maps = self._maps(networks, taken)
        structure = self._placed(self._structure_codes(networks, taken, maps), taken, into[0])
        return structure, self._placed(self._style_codes(networks, taken, maps, dtype), taken, into[1])

    def parts(self, networks: Networks, dtype: torch.dtype = torch.float32) -> dict[str, Callable[[], Outputs]]:
        """Return part -> function that computes it."""
        structure, style = (codes.to(dtype) for codes in self.codes)
        edited = [(self.edit[0], [self.edit[1]])]

        def encoders() -> Outputs:
            maps = self._maps(networks, self.taken)
            return {"structure codes": self._placed(self._structure_codes(networks, self.taken, maps), self.taken)}

        def decoder() -> Outputs:
            return {"composition": networks.decode(structure)}

        def style_encoders() -> Outputs:
            maps = self._maps(networks, self.taken)
            return {"style codes": self._placed(self._style_codes(networks, self.taken, maps, dtype), self.taken)}

        def generator() -> Outputs:
            return {"image": networks.generate(RegionMap.soft(self.soft), style)}

        def generator_on_labels() -> Outputs:
            return {"image": networks.generate(self._map(networks, self.taken[0][0]), style)}

        def finished(structure: Tensor, style: Tensor) -> Outputs:
            soft = networks.decode(structure)
            return {"composition": soft, "image": networks.generate(RegionMap.soft(soft), style)}

        def whole() -> Outputs:
            return finished(*self._both_codes(networks, self.taken, dtype))

        def edit() -> Outputs:
            return finished(*self._both_codes(networks, edited, dtype, (structure, style)))

        return {
            "structure encoders": encoders,
            "style encoders": style_encoders,
            "decoder": decoder,
            "generator": generator,
            "generator, label map": generator_on_labels,
            "composition": whole,
            "edit of one region": edit,
        }

    def call(self, part: str, networks: Networks, dtype: torch.dtype = torch.float32) -> Callable[[], Outputs]:
        """Return what is gated and timed."""
        function = self.parts(networks, dtype)[part]

        def run() -> Outputs:
            with torch.no_grad(), networks.mode():
                return function()

        return run


def in_turn(present: Tensor) -> Composition:
    """Return the composition (B = 1) whose regions come from the pictures in turn, from the next that has the region.

    Args:
        present: (S, N) bool.
    """
    count, regions = present.shape
    source = torch.full((1, regions), -1, dtype=torch.int64)
    turn = 0
    for region in range(regions):
        having = [s for s in ((turn + k) % count for k in range(count)) if bool(present[s, region])]
        if having:
            source[0, region] = having[0]
            turn = having[0] + 1
    return Composition(source)


def run_part(bench: MixSynBench, part: str, compiled: Networks | None, options: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    height, width = bench.config.image_size
    name = f"mixsyn/{part} {height}x{width}"
    with progress(f"{name}: float64"):
        exact = bench.call(part, bench.networks(dense=True, double=True), torch.float64)()
    contenders = {"dense": bench.networks(dense=True)}
    if compiled is not None:
        contenders["compile"] = compiled
    contenders["ours"] = bench.networks()
    calls: dict[str, Call] = {}
    verdicts: dict[str, Gate] = {}
    eager: Outputs = {}
    for contender, networks in contenders.items():
        call = bench.call(part, networks)
        try:
            with progress(f"{name}: first call of {contender}"), time_limit(options.compile_seconds):
                outputs = call()
        except Exception as error:  # the row goes on without this contender
            if contender != "compile":
                raise
            verdicts[contender] = Gate(False, float("inf"), 0.0, f"{type(error).__name__}: {str(error)[:160]}")
            continue
        eager = eager or outputs
        verdicts[contender] = gate(outputs, eager, exact, floor=FLOOR_COMPILE if contender == "compile" else None)
        calls[contender] = call
    passing = {contender: call for contender, call in calls.items() if verdicts[contender].passed}
    if part.startswith("generator"):
        passing["floor"] = bench.call(part, bench.floor())
    entries = compare(
        passing,
        verdicts,
        device=options.device,
        repeat=options.repeat,
        budget_s=options.seconds,
        warmup=1,
        memory=options.memory,
        what=name,
    )
    for contender, verdict in verdicts.items():
        if not verdict.passed:
            note = f"wrong result or failure: {verdict.what}, error {verdict.error:.1e}, {verdict.allowed:.1e} allowed"
            entries[contender] = Measured(gate=verdict, note=note)

    networks = {network: settings.to_dict(getattr(bench.config, network)) for network in ("structure", "style")}
    asked = {"part": part, "size": [height, width], "networks": networks}
    return schema.row(op="mixsyn", case=name, mode="forward", settings=asked, contenders=entries, baseline="dense")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line -> options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run_mixsyn",
        description=(__doc__ or "").split("\n")[0],
        epilog="and the options of the networks, as `mixsyn-fast train mixsyn --help` lists them: --structure.width ...",
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="128 x 128 only, without torch.compile")
    parser.add_argument("--sizes", default="128,256", help="image sizes in pixels (default %(default)s)")
    parser.add_argument("--sources", type=int, default=3, help="pictures of the composition (default 3)")
    parser.add_argument("--parts", metavar="REGEX", help="only parts whose name matches")
    parser.add_argument("--data", metavar="DIR", help="data set with label maps (default: facades drawn by code)")
    parser.add_argument("--kind", default="auto", help="layout of --data (default: by what it holds)")
    parser.add_argument("--split", default="val", help="part of --data (default val)")
    parser.add_argument("--repeat", type=int, default=7, help="rounds per row (default 7)")
    parser.add_argument("--seconds", type=float, default=60.0, help="soft limit for the timing of one row")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--compile-seconds", type=float, default=600.0, help="give torch.compile this long per part")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="skip peak memory")
    parser.add_argument("--device", default="cpu")
    cpu.add_option(parser)
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown at the end")
    parser.add_argument("--out", type=Path, help="JSON (default benchmarks/results/mixsyn_<device>.json)")
    options, of_networks = parser.parse_known_args(arguments)
    options.config, _ = settings.read(Config, of_networks, prog=parser.prog, fixed=("classes", "image_size"))
    options.device = torch.device(options.device)
    options.out = options.out or RESULTS / f"mixsyn_{cpu.suffix(options.device, options.cpu)}.json"
    options.compile = options.compile and not options.quick
    sizes = "128" if options.quick and options.sizes == "128,256" else options.sizes
    if not all(size.strip().isdigit() and int(size) > 0 for size in sizes.split(",")):
        parser.error(f"--sizes: expected positive numbers, got {sizes!r}")
    options.sizes = [int(size) for size in sizes.split(",")]
    if options.sources < 2:
        parser.error(f"--sources: expected at least 2, got {options.sources}")
    return options


def pictures(options: argparse.Namespace, size: int) -> tuple[tuple[str, ...], Tensor, Tensor, str]:
    """Return classes, images (S, 3, H, W), labels (S, H, W) and a description of the sources.

    Raises:
        ValueError: fewer pictures than sources; FileNotFoundError: no such folder.
    """
    if options.data:
        source, text = open_source(options.data, options.kind, options.split), f"{Path(options.data).name} {options.split}"
    else:
        source, text = open_source(None, "procedural_facades", count=options.sources, size=size), "procedural facades"
    if len(source) < options.sources:
        raise ValueError(f"--sources: expected at most the {len(source)} pictures of {options.data}, got {options.sources}")
    dataset = RegionDataset(source, size)
    batch = Collate(len(source.classes))([dataset[i] for i in range(options.sources)])
    return tuple(source.classes), batch.image, batch.regions.labels_at(), f"{options.sources} sources of {text}"


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the chosen parts, printing each as it comes; returns the result that is written."""
    result = heading("mixsyn", options.device, repeat=options.repeat)
    print(machine_line(result["machine"]))
    base = options.config
    result["rates"] = measure_rates(options.device)
    start = time.perf_counter()
    for size in options.sizes:
        classes, images, labels, result["labels"] = pictures(options, size)
        with progress(f"building networks for {size} x {size}"):
            bench = MixSynBench(replace(base, classes=classes, image_size=(size, size)), images, labels, options.device)
        compiled = bench.compiled() if options.compile else None
        for part in (part for part in bench.parts(bench.networks()) if re.search(options.parts or "", part)):
            row = jsonable(run_part(bench, part, compiled, options))
            result["rows"].append(row)
            print(tables.model_line(row), flush=True)
            result["seconds"] = round(time.perf_counter() - start, 1)
            save(result, options.out)
        del bench, compiled
        gc.collect()
    result |= tables.faults(result["rows"])
    save(result, options.out)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Measured point."""
    options = parse(arguments)
    try:
        cpu.restrict(options.cpu, options.device)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.device.type == "cpu":
        keep_memory()  # for every contender alike, as in run_models
    result = run(options)
    if not result["rows"]:
        print(f"--parts: no part matches {options.parts!r}", file=sys.stderr)
        return 2
    print(tables.render(result, markdown=options.markdown))
    print(tables.conclusion(result, result["rows"]))
    print(f"written: {options.out}")
    return 1 if result["losses"] or result["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
