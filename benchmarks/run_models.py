"""Measure whole generators: published form, dense plain PyTorch, torch.compile of it, ours, and the floors.

    python -m benchmarks.run_models [--quick] [--cases REGEX] [--repeat N] [--out FILE] [--markdown] [--no-compile]
                                    [--data DIR] [--device cuda] [--seconds S] [--budget S] [--cpu avx2]

Contenders of a row run in one process, taking turns, with the same weights, label maps and noise:

* published: the published form, with its loops over images and regions (when the test-suite's yardstick is there);
* dense: the same generator under use_plan("dense") and use_backend("reference"), torch's own convolutions, NCHW;
* compile: torch.compile of dense, its label map prepared outside the clock;
* ours: raw labels to output, the analysis of the label map (a fresh RegionMap) inside the clock;
* floor_plain: dense with the region norms removed; floor: ours with the region norms removed (channels_last,
  prepacked weights).

A row in which ours is slower than published or dense is a LOSS, and the exit status 1 (benchmarks/tables.py).

mode "forward" is eval without gradients, up to the output before tanh. mode "training" is forward in training mode and
backward to every parameter, without optimiser.

Gates: in float32 the relative error against dense is at most 1e-5 (and the float64 models agree within 1e-12 for
batch 1, unless --no-float64). Gradients: the error of ours against the float64 gradient of dense is at most twice that of
dense in float32, in the 2-norm over all parameters, dense being taken in the worse of the two memory layouts: batch
statistics at 8 x 8 and LeakyReLU's kink amplify the rounding of the convolutions to 4e-4 in one and 2e-3 in the other.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from mixsyn_fast.models import clade, sean, spade
from mixsyn_fast.models.plain import calibrate, dense_reference, plain_copy, randomise, shared_copy, without_norms
from torch import Tensor, nn

from mixsyn_fast.machine import time_limit
from mixsyn_fast.measure.clock import Call
from mixsyn_fast.measure.gate import Gate, gate
from mixsyn_fast.progress import progress
from mixsyn_fast.region_map import RegionMap
from mixsyn_fast.runtime import keep_memory
from mixsyn_fast.writing import jsonable

from . import cpu, schema, tables
from .cases import DTYPES, Labels, ModelCase, label_source, model_cases, select
from .schema import RESULTS, Measured
from .timing import compare, heading, machine_line, measure_rates, save

FAMILIES: dict[str, tuple[Any, Any]] = {
    "sean": (sean.Config, sean.SEANGenerator),  # from style codes
    "sean_image": (sean.Config, sean.SEANGenerator),  # from a style image: the style encoder is part of the work
    "spade": (spade.Config, spade.SPADEGenerator),
    "clade": (clade.Config, clade.CLADEGenerator),
}
# Floors of the gate for a whole generator: dozens of layers, each with a floor of its own, whose roundings are amplified by
# those above. Gradients pass them twice; in float32 those of dense in both memory layouts are the measure, without a floor.
_FLOORS = {"float64": 1e-12, "float32": 1e-5, "float16": 0.1, "bfloat16": 0.1}
_GRADIENT_FLOORS = {"float64": 1e-3, "float32": 0.0, "float16": 0.1, "bfloat16": 0.1}
_OUTPUT, _GRADIENTS = "output before tanh", "gradients"
_YARDSTICK = Path(__file__).resolve().parents[1] / "tests" / "models" / "published.py"


def published_forms() -> ModuleType | None:
    """The test-suite's generators in published form; None outside a clone."""
    if not _YARDSTICK.is_file():
        return None
    spec = importlib.util.spec_from_file_location("mixsyn_fast_published_forms", _YARDSTICK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class ModelBench:
    """One generator on one batch of label maps: contenders and gates."""

    def __init__(
        self, case: ModelCase, labels: Labels, device: torch.device | str = "cpu", *, seed: int = 0, **fields: Any
    ) -> None:
        # fields: more of the generator's Config, for tests
        self.case, self.device, self.seed = case, torch.device(device), seed
        config, build = FAMILIES[case.family]
        torch.manual_seed(seed)
        self.generator: Any = build(config(label_nc=case.label_nc, ngf=case.ngf, image_size=case.size, **fields))
        randomise(self.generator, seed)
        self.generator.to(self.device)
        self.image, self.labels = labels.tensors(case.labels, case.batch, case.size, self.device)
        self.codes = None
        if case.family == "sean":
            with torch.no_grad():
                self.codes = self.generator.encode(self.image, self.regions())
        calibrate(self.generator, self.regions(), *self._more(self.image), **self._keywords)
        self.generator.to(DTYPES[case.dtype])
        if self.codes is not None:
            self.codes = self.codes.to(DTYPES[case.dtype])
        self.image = self.image.to(DTYPES[case.dtype])
        self.generator.train(case.mode == "training")
        side = self.generator.config.output_size
        rng = torch.Generator().manual_seed(seed + 1)
        self.grad = torch.randn(case.batch, 3, *side, generator=rng).to(self.device, DTYPES[case.dtype])

    @property
    def _keywords(self) -> dict[str, Any]:
        if not self.case.family.startswith("sean"):
            return {}
        return {"noise": "published" if self.device.type == "cpu" else "device"}

    def _more(self, image: Tensor) -> tuple[Any, ...]:
        if self.case.family == "sean":
            assert self.codes is not None
            return None, self.codes.to(image.dtype)
        return (image,) if self.case.family == "sean_image" else ()

    def regions(self) -> RegionMap:
        """A fresh region map: nothing about the labels is known yet."""
        return RegionMap(self.labels, self.case.label_nc)

    def features(self, model: Any, regions: Any = None, image: Tensor | None = None) -> Tensor:
        """Raw labels (or `regions`) to the output before tanh, with the same noise every time."""
        torch.manual_seed(self.seed)
        image = self.image if image is None else image
        return model.forward_features(self.regions() if regions is None else regions, *self._more(image), **self._keywords)

    def functions(
        self, *, compiled: bool, published: ModuleType | None
    ) -> dict[str, tuple[nn.Module, Callable[[], Tensor]]]:
        """Name -> (module whose parameters get gradients, forward)."""
        plain = plain_copy(self.generator)
        found: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {}
        looped_noise_differs = self.case.family.startswith("sean") and self.device.type != "cpu"  # it draws on the CPU
        if published is not None and not looped_noise_differs:
            looped = self._published(published)
            if looped is not None:
                found["published"] = looped

        def dense() -> Tensor:
            with dense_reference():
                return self.features(plain)

        found["dense"] = (plain, dense)
        if compiled:
            found["compile"] = (plain, self._compiled(plain))
        found["ours"] = (self.generator, lambda: self.features(self.generator))
        return found

    def floors(self) -> dict[str, tuple[nn.Module, Callable[[], Tensor]]]:
        """The network without its region norms, in plain PyTorch and with our convolutions and layout."""
        fast = without_norms(self.generator)
        plain = plain_copy(fast)

        def plain_floor() -> Tensor:
            with dense_reference():
                return self.features(plain)

        return {"floor_plain": (plain, plain_floor), "floor": (fast, lambda: self.features(fast))}

    def _compiled(self, plain: Any) -> Callable[[], Tensor]:
        import torch._inductor.config as inductor

        torch._dynamo.reset()
        inductor.fallback_random = True  # the same noise as eager
        function = torch.compile(plain.forward_features, dynamic=False)
        regions = self.regions()

        def call() -> Tensor:
            with dense_reference():
                torch.manual_seed(self.seed)
                return function(regions, *self._more(self.image), **self._keywords)

        return call

    def _published(self, forms: ModuleType) -> tuple[nn.Module, Callable[[], Tensor]] | None:
        case = self.case
        name = {
            "sean": "SEANGenerator",
            "sean_image": "SEANGenerator",
            "spade": "SPADEGenerator",
            "clade": "CLADEGenerator",
        }[case.family]
        try:
            config = self.generator.config
            other = {"style": "style_length", "hidden": "hidden", "width": "encoder_width"}  # their name: ours
            more = {theirs: getattr(config, own) for theirs, own in other.items() if hasattr(config, own)}
            model = getattr(forms, name)(case.ngf, case.label_nc, config.output_size, spectral=False, **more)
            keys = model.load_state_dict(self.generator.state_dict(), strict=False, assign=True)
        except (AttributeError, TypeError, RuntimeError) as error:
            print(f"  the published form cannot be built: {error}", file=sys.stderr)
            return None
        missing = [k for k in keys.missing_keys if ".Spade.param_free_norm." not in k and "num_batches" not in k]
        if missing or keys.unexpected_keys:
            print(f"  the published form has other entries: {missing[:3]} {keys.unexpected_keys[:3]}", file=sys.stderr)
            return None
        model.to(self.device, DTYPES[case.dtype]).train(case.mode == "training")
        for p in model.parameters():
            p.requires_grad_(True)
        channels = torch.arange(case.label_nc, device=self.device).view(1, -1, 1, 1)

        def call() -> Tensor:
            segmap = (self.labels[:, None] == channels).to(self.grad.dtype)
            torch.manual_seed(self.seed)
            codes: tuple[Any, ...] = ()
            if case.family.startswith("sean"):
                codes = (model.Zencoder(self.image, segmap) if self.codes is None else self.codes, None)
            return model.pre_tanh(segmap, *codes)

        return model, call

    def step(self, model: nn.Module, forward: Callable[[], Tensor]) -> Call:
        """What is timed: the forward alone, or forward and backward."""
        if self.case.mode == "forward":

            def run() -> Any:
                with torch.no_grad():
                    return forward()

            return run

        def train() -> None:
            forward().backward(self.grad)
            model.zero_grad(set_to_none=True)  # after the step, so that peak memory starts from nothing

        return train

    def gates(
        self,
        functions: Mapping[str, tuple[nn.Module, Callable[[], Tensor]]],
        *,
        compile_seconds: float = 900.0,
        float64: bool = True,
    ) -> dict[str, Gate]:
        """Everybody by the rule of gate.py, dense as the reference; a contender that raises fails and says why."""
        training = self.case.mode == "training"
        verdicts: dict[str, Gate] = {}
        with progress(f"{self.case.name} in float64"):
            exact, names = self._exact()

        def result(model: nn.Module, forward: Callable[[], Tensor]) -> dict[str, Tensor]:
            if not training:
                with torch.no_grad():
                    return {_OUTPUT: forward()}
            model.zero_grad(set_to_none=True)
            out = forward()
            out.backward(self.grad)
            found = {_OUTPUT: out.detach(), _GRADIENTS: flat_gradient(model, names)}
            model.zero_grad(set_to_none=True)
            return found

        dense: dict[str, Tensor] = {}
        also: dict[str, Tensor] = {}
        for name in ("dense", *(n for n in functions if n != "dense")):
            model, forward = functions[name]
            try:
                with progress(f"{name} of {self.case.name}: first call"), time_limit(compile_seconds):
                    found = result(model, forward)
            except Exception as error:  # the row goes on without this contender
                verdicts[name] = Gate(False, float("inf"), 0.0, f"{type(error).__name__}: {str(error)[:160]}")
                if name == "dense":
                    raise
                continue
            if not dense:
                dense = also = found
                if training:  # the same plain PyTorch in the other memory layout: other sums in convolutions
                    shared = shared_copy(self.generator)
                    with dense_reference():
                        also = result(shared, lambda shared=shared: self.features(shared))
            verdicts[name] = self._verdict(found, dense, also, exact)
            del found
        if float64 and not training and self.case.batch == 1 and self.case.dtype == "float32":
            model = copy.deepcopy(self.generator).double()
            with torch.no_grad():
                ours = {_OUTPUT: self.features(model, image=self.image.double())}
            verdicts["ours (float64)"] = gate(ours, exact, exact, floor=_FLOORS["float64"])
        del dense, also, exact
        gc.collect()
        return verdicts

    def _verdict(
        self,
        found: Mapping[str, Tensor],
        dense: Mapping[str, Tensor],
        also: Mapping[str, Tensor],
        exact: Mapping[str, Tensor],
    ) -> Gate:
        verdict = gate(found, dense, {_OUTPUT: exact[_OUTPUT]}, floor=_FLOORS[self.case.dtype])
        if _GRADIENTS not in exact or not verdict.passed:
            return verdict
        # The 2-norm alone: all parameters' gradients stand in one vector, whose largest are those of a few biases.
        right = {_GRADIENTS: exact[_GRADIENTS]}
        floor = _GRADIENT_FLOORS[self.case.dtype]
        gradients = gate(found, dense, right, floor=floor, also=also, elements=False)
        return verdict if gradients.passed else gradients

    def _exact(self) -> tuple[dict[str, Tensor], list[str]]:
        """Output, and in training gradients, of dense in float64; names of the parameters whose gradient is not zero."""
        model = plain_copy(copy.deepcopy(self.generator).double())  # a copy of its own: plain_copy shares weights
        with dense_reference(), torch.set_grad_enabled(self.case.mode == "training"):
            out = self.features(model, image=self.image.double())
        if self.case.mode != "training":
            return {_OUTPUT: out}, []
        out.backward(self.grad.double())
        names = [name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())]
        return {_OUTPUT: out.detach(), _GRADIENTS: flat_gradient(model, names)}, names


def flat_gradient(model: nn.Module, names: Sequence[str]) -> Tensor:
    """Return the gradients of the named parameters as one vector; NaN, which no gate passes, for one that is missing."""
    parameters = dict(model.named_parameters())
    parts = []
    for name in names:
        parameter = parameters[name]
        grad = parameter.grad
        parts.append((torch.full_like(parameter, float("nan")) if grad is None else grad).detach().flatten())
    return torch.cat(parts) if parts else torch.zeros(0)


def run_model(case: ModelCase, labels: Labels, options: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    with progress(f"building {case.name}"):
        bench = ModelBench(case, labels, options.device)
    published = published_forms() if options.published else None
    functions = bench.functions(compiled=options.compile, published=published)
    verdicts = bench.gates(functions, compile_seconds=options.compile_seconds, float64=options.float64)
    double = verdicts.pop("ours (float64)", None)
    if double is not None and not double.passed:
        verdicts["ours"] = Gate(False, double.error, double.allowed, "float64 output")
    passing = {n: f for n, f in functions.items() if verdicts[n].passed}
    calls = {name: bench.step(*pair) for name, pair in {**passing, **bench.floors()}.items()}
    entries = compare(
        calls,
        {name: verdicts[name] for name in passing},
        device=options.device,
        repeat=options.repeat,
        budget_s=options.seconds,
        warmup=1,
        memory=options.memory,
        what=case.name,
    )
    for name, verdict in verdicts.items():
        if name not in entries:
            note = f"wrong result or failure: {verdict.what}, error {verdict.error:.1e}, {verdict.allowed:.1e} allowed"
            entries[name] = Measured(gate=verdict, note=note)

    facts = {} if double is None else {"float64_error": double.error}
    return schema.row(
        op="generator", case=case.name, mode=case.mode, settings=case, contenders=entries, baseline="dense", facts=facts
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line -> options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_models", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="SEAN at batch 1 only")
    parser.add_argument("--cases", metavar="REGEX", help="only rows whose name matches")
    parser.add_argument("--repeat", type=int, default=7, help="rounds per row (default 7)")
    parser.add_argument("--seconds", type=float, default=240.0, help="soft limit for the timing of one row")
    parser.add_argument("--budget", type=float, default=5400.0, help="soft limit for the run: later rows are left out")
    parser.add_argument("--out", type=Path, default=None, help="JSON (default benchmarks/results/models_<device>.json)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--no-published", dest="published", action="store_false", help="leave the looped form out")
    parser.add_argument("--no-float64", dest="float64", action="store_false", help="skip the check in float64")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="skip peak memory")
    parser.add_argument("--compile-seconds", type=float, default=900.0, help="give torch.compile this long")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown at the end")
    parser.add_argument("--data", metavar="DIR", help="folder with images/ and labels/ of faces")
    parser.add_argument("--device", default="cpu")
    cpu.add_option(parser)
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument("--ngf", type=int, help="another width of all generators (for trying things out)")
    parser.add_argument("--size", type=int, help="another image size (for trying things out)")
    parser.add_argument(
        "--default-allocator", action="store_true", help="do not call mixsyn_fast.keep_memory() for all contenders first"
    )
    options = parser.parse_args(arguments)
    options.compile &= options.cpu is None  # see cpu.py
    if options.device == "cpu" and not options.default_allocator:
        keep_memory()  # for every contender alike: fresh pages for each large result would drown the rest
    options.device = torch.device(options.device)
    options.out = options.out or RESULTS / f"models_{cpu.suffix(options.device, options.cpu)}.json"
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the chosen rows, printing each as it comes; returns the result that is written."""
    labels = label_source(options.data)
    result = heading("models", options.device, labels=labels.text, repeat=options.repeat)
    print(machine_line(result["machine"]))
    result["rates"] = measure_rates(options.device, DTYPES[options.dtype])
    print(f"{labels.text}; " + ", ".join(f"{k} {v:.1f}" for k, v in result["rates"].items()))
    changes = {"dtype": options.dtype}
    changes |= {k: v for k, v in (("ngf", options.ngf), ("size", options.size)) if v is not None}
    start = time.perf_counter()
    rows = [ModelCase(**{**vars(row), **changes}) for row in model_cases(quick=options.quick)]
    for case in select(rows, options.cases):
        if time.perf_counter() - start > options.budget:
            result["left_out"].append(case.name)
            continue
        row = jsonable(run_model(case, labels, options))
        result["rows"].append(row)
        print(tables.model_line(row), flush=True)
        result["seconds"] = round(time.perf_counter() - start, 1)
        save(result, options.out)
        gc.collect()
    if result["left_out"]:
        print(f"left out after {options.budget:.0f} s: {', '.join(result['left_out'])}", file=sys.stderr)
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
    result = run(options)
    if not result["rows"]:
        print(f"--cases: no row matches {options.cases!r}", file=sys.stderr)
        return 2
    print(tables.render(result, markdown=options.markdown))
    print(tables.conclusion(result, result["rows"]))
    print(f"written: {options.out}")
    return 1 if result["losses"] or result["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
