"""Measure harmonized regional style transfer: a training step and its parts, an edit, pooling, attention, a style code.

    python -m benchmarks.run_harmonized PART [--width 32] [--size 128] [--shipped] [--repeat N] [--quick] [--cpu avx2]

PART is one of

* step: a training step of stage 1 with peak memory, and its parts, each forward and backward: the encoder with its pooling,
  the pooling alone, the attention, the decoder, the discriminator;
* edit: an image of a picture's hair in the style of another: codes of both, attention, decoder;
* pooling: the codes of 19 regions from the maps of the encoder's layers, 256 x 256, batch 4 (docs/exact_algebra.md, 13);
* attention: the correction of the codes of 19 regions, for 1 and 8 pictures;
* codes: a style code of a group of regions, and a slider's whole move, `Harmonized.tune` with one amount, to the image.

--shipped: hidden layers, codes and flows of the sizes that ship, in rows of their own; else as published.

Contenders share weights, label maps and noise, and take turns:

* dense: the same networks under use_plan("dense") and use_backend("reference"): plain PyTorch. Of the pooling the sum of
  five maps of the code's length at half the image's size, then the means;
* ours: raw labels to the result, the analysis of the label map (a fresh RegionMap) inside the clock. Of an edit what is left
  of it when nothing but the codes of one region is new: `Harmonized` remembers the rest;
* full (edit, slider): ours, nothing remembered;
* explicit (attention): Eq. 4 and 5 as matrix products and a softmax, in place of scaled_dot_product_attention;
* floor_mapping, adaptive (codes): a code of the group from its mapping network, which cannot read one back; from its flow,
  integrated to a tolerance. Ours is the flow by its fixed number of steps, a slider's: its error is that to the adaptive
  one, in deviations of the code. A slider's adaptive remembers what ours does;
* floor (step): ours without the generator's region norms.

A step is the generator's phase and the discriminator's, with all losses but the perceptual one, and both optimisers;
averaged weights and data are not in it. Gate: losses and gradients of the first step, images, codes, by the rule of
mixsyn_fast/measure/gate.py, dense as the reference; for a step with the floor KINKS of run_clvae, in the 2-norm. Rows of
another part in the same file are kept where machine and commit are the same. --quick: tiny networks, one round, to see that
it runs.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mixsyn_fast.models.data import FACE_CLASSES
from mixsyn_fast.models.discriminators import DiscriminatorConfig
from mixsyn_fast.models.harmonized.attention import StyleAttention
from mixsyn_fast.models.harmonized.config import AttentionConfig, FlowConfig, GeneratorConfig, MappingConfig
from mixsyn_fast.models.harmonized.encoder import MultiScaleEncoder
from mixsyn_fast.models.harmonized.flow import Solver, StyleFlow
from mixsyn_fast.models.harmonized.generator import Generator
from mixsyn_fast.models.harmonized.mapping import MappingNetwork
from mixsyn_fast.models.harmonized.model import Harmonized
from mixsyn_fast.models.harmonized.task import Config, HarmonizedTask, fitted
from mixsyn_fast.models.pictures.options import drawn_source
from mixsyn_fast.models.pictures.picture import pictures_of
from mixsyn_fast.models.plain import calibrate, dense_reference, randomise, without_norms
from torch import Tensor

from mixsyn_fast.measure.clock import Call
from mixsyn_fast.measure.gate import Gate, gate
from mixsyn_fast.progress import progress
from mixsyn_fast.region_map import RegionMap
from mixsyn_fast.runtime import keep_memory
from mixsyn_fast.writing import jsonable

from . import cpu, schema, tables
from .cases import Labels, label_source
from .run_clvae import KINKS, Step, goal, same_noise, step_row, timed
from .run_training import merged
from .schema import RESULTS
from .timing import heading, machine_line, memory_of, save

PARTS = ("step", "edit", "pooling", "attention", "codes")
BATCH, CLASSES = 4, len(FACE_CLASSES)
GROUPS = {"hair": ("hair",), "skin": ("skin", "nose")}
SHIPPED: dict[str, Any] = {"largest": 96, "hidden": 32, "style_length": 32, "encoder_width": 16}
SHIPPED_WIDTH, SHIPPED_HIDDEN = 16, 128  # ngf; layers of mapping networks and flows
LEAST_STEP, MOST_CODE_S = 2.5, 5e-3  # goals
Outputs = dict[str, Tensor]


def sizes(options: argparse.Namespace) -> str:
    """Return what a row's name says of the networks' sizes."""
    return "shipped" if options.shipped else f"w{options.width}"


def generator_config(options: argparse.Namespace, spectral: bool = False) -> GeneratorConfig:
    """Return the settings of the networks: hidden layers and codes as published, or tiny ones."""
    small: dict[str, Any] = {"hidden": 8, "style_length": 16, "encoder_width": 4} if options.quick else {}
    if options.shipped:
        small = SHIPPED
    size = {"ngf": options.width, "image_size": options.size}
    return GeneratorConfig(label_nc=CLASSES, spectral_norm=spectral, **size, **small)


# ---------------------------------------------------------------------------------------------------- a training step


def build(options: argparse.Namespace) -> HarmonizedTask:
    """Return the training task of stage 1; no perceptual loss."""
    torch.manual_seed(0)
    config = Config(
        generator=generator_config(options, spectral=True),
        discriminator=DiscriminatorConfig(ndf=options.width * (2 if options.shipped else 1)),
        vgg=0.0,
        init_gain=0.0,  # weights of which every branch counts
        mapping_steps=0,
        flow_steps=0,
    )
    task = HarmonizedTask(fitted(config, FACE_CLASSES, (options.size, options.size), False))
    randomise(task.networks["generator"], 0)
    return task


def contenders(task: HarmonizedTask, image: Tensor, labels: Tensor) -> dict[str, Step]:
    """Return the same training as each contender has it; ours in the task itself."""
    for network in task.networks.values():
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    dense, last = copy.deepcopy(task), image.contiguous(memory_format=torch.channels_last)
    return {"dense": Step(dense, last, labels, dense=True), "ours": Step(task, last, labels)}


def gates(steps: Mapping[str, Step]) -> dict[str, Gate]:
    """Judge the first step of all against dense in float64."""
    dense = steps["dense"]
    double = copy.deepcopy(dense.task)
    for network in double.networks.values():
        network.double()
    exact = Step(double, dense.image.double(), dense.labels, dense=True).first()
    reference = dense.first()
    found = {name: reference if name == "dense" else step.first() for name, step in steps.items()}
    return {name: gate(own, reference, exact, floor=KINKS, elements=False) for name, own in found.items()}


def parts_of(step: Step) -> dict[str, Call]:
    """Parts of a step, each forward and backward, on the label map's fresh analysis."""
    task, networks = step.task, step.task.networks
    generator, attention, discriminator = (networks[name] for name in ("generator", "attention", "discriminator"))
    assert isinstance(generator, Generator) and isinstance(attention, StyleAttention)
    encoder = generator.Zencoder
    assert isinstance(encoder, MultiScaleEncoder)
    with torch.no_grad(), step.mode():
        regions = step.batch().regions
        maps = encoder.maps(step.image)
        codes, present = encoder(step.image, regions), generator.present(regions)

    def encode() -> Tensor:
        return encoder(step.image, step.batch().regions).square().mean()

    def pool() -> Tensor:
        given = [each.detach().requires_grad_() for each in maps]
        return pooled(encoder, given, step.batch().regions, step.image).square().mean()

    def attend() -> Tensor:
        given = codes.clone().requires_grad_()
        corrected: Tensor = attention(given, given, present)
        return corrected.square().mean()

    def decode() -> Tensor:
        made: Tensor = generator(step.batch().regions, style_codes=codes.clone().requires_grad_())
        return made.square().mean()

    def judge() -> Tensor:
        features = discriminator(torch.cat((step.image.flip(0), step.image)), step.batch().regions)
        return torch.stack([scale[-1].mean() for scale in features]).sum()

    def part(function: Callable[[], Tensor]) -> Call:
        def call() -> None:
            for network in networks.values():
                network.requires_grad_(True)
            with step.mode():
                function().backward()
            for network in networks.values():
                network.zero_grad()

        return call

    every = {"encoder": encode, "pooling": pool, "attention": attend, "decoder": decode, "discriminator": judge}
    del task
    return {name: part(function) for name, function in every.items()}


def pooled(encoder: MultiScaleEncoder, maps: list[Tensor], regions: RegionMap, image: Tensor) -> Tensor:
    """Return the codes (B, K, S) of maps that are there: what the encoder does after its convolutions."""
    found = encoder.maps
    encoder.maps = lambda image: maps  # type: ignore[method-assign]
    try:
        codes: Tensor = encoder(image, regions)
    finally:
        encoder.maps = found  # type: ignore[method-assign]
    return codes


def run_step(options: argparse.Namespace, labels: Labels) -> list[dict[str, Any]]:
    """The whole step, with memory, and its parts."""
    image, map_ = labels.tensors("face", BATCH, options.size)
    with progress("gates of the step"):
        steps = contenders(build(options), image, map_)
        verdicts = gates(steps)
    passing = {name: step for name, step in steps.items() if verdicts[name].passed}
    calls: dict[str, Call] = {f"step/{name}": step for name, step in passing.items()}
    bare = copy.deepcopy(steps["ours"].task)
    bare.networks["generator"] = without_norms(bare.networks["generator"])
    calls["step/floor"] = Step(bare, steps["ours"].image, map_)
    for name, step in passing.items():
        calls |= {f"{part}/{name}": call for part, call in parts_of(step).items()}
    found = timed(calls, options, "step")
    rows = []
    whole = {name: timing.median for name, timing in found.items() if name.startswith("step/")}
    for part in dict.fromkeys(name.split("/")[0] for name in calls):
        own = {name.split("/")[1]: timing for name, timing in found.items() if name.startswith(f"{part}/")}
        asked = {"classes": CLASSES, "width": options.width, "size": [options.size] * 2, "batch": BATCH, "part": part}
        row = step_row(f"harmonized/{part} {sizes(options)}", asked, verdicts, own, op="harmonized")
        if part == "step":
            for name, step in passing.items() if options.memory else ():
                memory = memory_of(step)
                row["contenders"][name].peak_bytes = None if memory is None else memory.peak
            if {"ours", "dense"} <= own.keys():
                row["targets"] = [goal("dense", own["dense"].median / own["ours"].median, least=LEAST_STEP)]
        else:
            row["facts"] = {"share of the step": {name: t.median / whole[f"step/{name}"] for name, t in own.items()}}
        rows.append(row)
    return rows


# ---------------------------------------------------------------------------------------------------------------- use


def model_of(options: argparse.Namespace) -> Harmonized:
    """Return a model with random weights of which every part counts; hidden layers and codes as published."""
    torch.manual_seed(0)
    generator = Generator(generator_config(options)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    randomise(generator, 0)
    picture = pictures_of(drawn_source(FACE_CLASSES, (options.size, options.size), 1))[0]
    regions = RegionMap(torch.from_numpy(picture.labels)[None].long(), CLASSES, ignore_index=-1)
    length = generator.config.style_length
    calibrate(generator, regions, style_codes=torch.randn(1, CLASSES, length) / 4, noise=None)
    width = {"width": SHIPPED_HIDDEN} if options.shipped else {"width": 16} if options.quick else {}
    mapping = {name: MappingNetwork(len(regions), length, MappingConfig(**width)) for name, regions in GROUPS.items()}
    flows = {name: StyleFlow(len(regions) * length, FlowConfig(**width)) for name, regions in GROUPS.items()}
    attention = StyleAttention(AttentionConfig(style_length=length))
    return Harmonized(generator, FACE_CLASSES, attention=attention, groups=GROUPS, mapping=mapping, flows=flows)


@torch.no_grad()
def transferred(model: Harmonized, pictures: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """The image (1, 3, H, W) of a picture's hair in the style of another, nothing remembered."""
    assert isinstance(model.generator, Generator) and model.attention is not None
    codes, maps = [], []
    for picture in pictures:
        image = torch.from_numpy(picture.image.copy()).permute(2, 0, 1)[None].to(dtype) / 127.5 - 1
        maps.append(RegionMap(torch.from_numpy(picture.labels)[None].long(), CLASSES, ignore_index=-1))
        codes.append(model.generator.encode(image, maps[-1]))
    composed = codes[0].clone()
    composed[:, FACE_CLASSES.index("hair")] = codes[1][:, FACE_CLASSES.index("hair")]
    corrected = model.attention(composed, codes[0], model.generator.present(maps[0]))
    with same_noise(1):
        return torch.tanh(model.generator.forward_features(maps[0], style_codes=corrected, noise="device"))


def run_edit(options: argparse.Namespace, labels: Labels) -> list[dict[str, Any]]:
    """A transfer of hair: dense, full, and what is left where one code alone is new."""
    del labels
    model = model_of(options)
    pictures = pictures_of(drawn_source(FACE_CLASSES, model.size, 2))
    with progress("gates of the edit"):
        double = copy.deepcopy(model)
        for network in double._networks().values():
            network.double()
        with dense_reference():
            exact, dense = {"image": transferred(double, pictures, torch.float64)}, {"image": transferred(model, pictures)}
        verdict = gate({"image": transferred(model, pictures)}, dense, exact)
    given = [each for picture in pictures for each in (picture.image, picture.labels)]
    new = itertools.count()
    codes = model.transfer(*given).codes
    moved = copy.copy(model)  # what ours remembers is not what the others forget
    moved._forget()
    moved.transfer(*given)

    def plain() -> object:
        model._forget()
        with dense_reference():
            return model.transfer(*given)

    def full() -> object:
        model._forget()
        return model.transfer(*given)

    def ours() -> object:
        other = codes.clone()
        other[FACE_CLASSES.index("hair")] += 1e-3 * next(new)  # an image that is not remembered
        return moved.transfer(*given[:2], *given[:2], (), codes=other)

    calls: dict[str, Call] = {"dense": plain, "full": full, "ours": ours} if verdict.passed else {}
    verdicts = {"dense": gate(dense, dense, exact), "full": verdict, "ours": verdict}
    found = timed(calls, options, "edit")
    asked = {"classes": CLASSES, "width": options.width, "size": list(model.size), "region": "hair"}
    row = step_row(f"harmonized/edit {sizes(options)}", asked, verdicts, found, op="harmonized")
    return [{**row, "mode": "forward"}]


# ---------------------------------------------------------------------------------------------------- pooling, attention


def run_pooling(options: argparse.Namespace, labels: Labels) -> list[dict[str, Any]]:
    """Forward, and forward with backward."""
    size = 64 if options.quick else 256
    image, map_ = labels.tensors("face", BATCH, size)
    torch.manual_seed(0)
    config = generator_config(options)
    encoder = MultiScaleEncoder(config.style_length, config.encoder_width)
    with torch.no_grad():
        encoder.level_weights.copy_(torch.randn(5))
        maps = [each.contiguous(memory_format=torch.channels_last) for each in encoder.maps(image)]
    grad = torch.randn(BATCH, CLASSES, config.style_length)
    double = copy.deepcopy(encoder).double()

    def run(network: MultiScaleEncoder, dense: bool, backward: bool) -> Outputs:
        dtype = network.level_weights.dtype
        given = [each.to(dtype).detach().requires_grad_(backward) for each in maps]
        with torch.set_grad_enabled(backward), dense_reference() if dense else nullcontext():
            codes = pooled(network, given, RegionMap(map_, CLASSES), image.to(dtype))
            found = {"codes": codes.detach()}
            if backward:
                codes.backward(grad.to(dtype))
                found |= {f"gradient of map {i}": each.grad for i, each in enumerate(given) if each.grad is not None}
                for name, parameter in network.named_parameters():
                    if parameter.grad is not None:
                        found[name] = parameter.grad
                network.zero_grad()
        return found

    rows = []
    for mode in ("forward", "both"):
        backward = mode == "both"
        with progress(f"gates of the pooling, {mode}"):
            exact = run(double, True, backward)
            reference = run(encoder, True, backward)
            verdicts = {
                "dense": gate(reference, reference, exact, elements=False),
                "ours": gate(run(encoder, False, backward), reference, exact, elements=False),
            }
        del exact, reference
        calls: dict[str, Call] = {
            name: (lambda name=name, backward=backward: run(encoder, name == "dense", backward))
            for name, verdict in verdicts.items()
            if verdict.passed
        }
        found = timed(calls, options, f"pooling {mode}")
        asked = {"classes": CLASSES, "batch": BATCH, "size": [size, size], "widths": [each.shape[1] for each in maps]}
        asked["length"] = config.style_length
        row = step_row(f"harmonized/pooling {mode}", asked, verdicts, found, op="harmonized")
        rows.append({**row, "mode": mode})
    return rows


def explicit(attention: StyleAttention, composed: Tensor, target: Tensor, present: Tensor) -> Tensor:
    """Eq. 4 and 5 as matrix products."""
    keys = (present | ~present.any(1, keepdim=True))[:, None]
    logits = attention.query(composed) @ attention.key(target).transpose(1, 2)
    correction = torch.softmax(logits.masked_fill(~keys, -torch.inf), 2) @ attention.value(target)
    return composed + attention.alpha * correction * present[..., None].to(correction.dtype)


def run_attention(options: argparse.Namespace, labels: Labels) -> list[dict[str, Any]]:
    """A row per number of pictures and mode."""
    del labels
    torch.manual_seed(0)
    length = generator_config(options).style_length
    attention = StyleAttention(AttentionConfig(style_length=length))
    double = copy.deepcopy(attention).double()
    rows = []
    for batch, mode in itertools.product((1, 8), ("forward", "both")):
        target, composed = (torch.randn(2, batch, CLASSES, length) * 0.5).unbind()
        present = torch.rand(batch, CLASSES) < 0.8
        grad = torch.randn(batch, CLASSES, length)

        def run(
            network: StyleAttention,
            name: str,
            mode: str = mode,
            given: tuple[Tensor, Tensor] = (composed, target),
            present: Tensor = present,
            grad: Tensor = grad,
        ) -> Outputs:
            dtype = network.alpha.dtype
            with torch.set_grad_enabled(mode == "both"), dense_reference() if name == "dense" else nullcontext():
                inputs = [each.to(dtype).detach().requires_grad_(mode == "both") for each in given]
                made = explicit(network, *inputs, present) if name == "explicit" else network(*inputs, present)
                found = {"codes": made.detach()}
                if mode == "both":
                    made.backward(grad.to(dtype))
                    found |= {f"gradient {i}": each.grad for i, each in enumerate(inputs) if each.grad is not None}
                    network.zero_grad()
            return found

        exact, reference = run(double, "explicit"), run(attention, "explicit")
        verdicts = {name: gate(run(attention, name), reference, exact) for name in ("explicit", "ours")}
        calls: dict[str, Call] = {
            name: (lambda name=name, run=run: run(attention, name)) for name, verdict in verdicts.items() if verdict.passed
        }
        found = timed(calls, options, f"attention b{batch} {mode}")
        asked = {"classes": CLASSES, "batch": batch, "length": length}
        row = step_row(f"harmonized/attention b{batch}", asked, verdicts, found, op="harmonized")
        rows.append({**row, "mode": mode, "baseline": "explicit"})
    return rows


# -------------------------------------------------------------------------------------------------------------- codes


def run_codes(options: argparse.Namespace, labels: Labels) -> list[dict[str, Any]]:
    """A style code of every group: mapping network, flow to a tolerance, flow by fixed steps."""
    del labels
    model, rows = model_of(options), []
    for group, regions in GROUPS.items():
        net, flow = model.mapping[group], model.flows[group]
        torch.manual_seed(1)
        z, latent = torch.randn(1, net.config.z_dim), torch.randn(1, flow.size)
        with torch.no_grad():
            error = float((flow.decode(latent, "fixed") - flow.decode(latent, "adaptive")).div(flow.scale()).abs().max())

        def run(name: str, net: Any = net, flow: StyleFlow = flow, z: Tensor = z, latent: Tensor = latent) -> object:
            with torch.no_grad():
                return (
                    net(z) if name == "floor_mapping" else flow.decode(latent, "adaptive" if name == "adaptive" else "fixed")
                )

        names = ("floor_mapping", "adaptive", "ours")
        found = timed({name: (lambda name=name, run=run: run(name)) for name in names}, options, group)
        asked = {"group": group, "regions": len(regions), "length": model.config.style_length}
        asked |= {"steps": flow.config.steps, "tolerance": flow.config.tolerance, "width": flow.config.width}
        row = step_row(f"harmonized/code of {group}{' shipped' * options.shipped}", asked, {}, found, op="harmonized")
        row["facts"] = {"fixed_error": error}
        row["targets"] = [goal("seconds", found["ours"].median, most=MOST_CODE_S)]
        rows.append({**row, "mode": "forward", "baseline": ""})
    return [*rows, slider(model, options)]


def slider(model: Harmonized, options: argparse.Namespace) -> dict[str, Any]:
    """A move of the slider of hair, to the image: fixed steps, to a tolerance, and nothing remembered."""
    picture = pictures_of(drawn_source(FACE_CLASSES, model.size, 1))[0]
    moves = itertools.count(1)
    whole = copy.copy(model)  # what it forgets is not what the others remember

    def move(solver: Solver = "fixed") -> object:
        return model.tune(picture.image, picture.labels, "hair", 0, (1e-4 * next(moves),), solver=solver)

    def full() -> object:
        whole._forget()
        return whole.tune(picture.image, picture.labels, "hair", 0, (1e-4 * next(moves),))

    found = timed({"full": full, "adaptive": lambda: move("adaptive"), "ours": move}, options, "slider")
    flow = model.flows["hair"]
    asked = {"classes": CLASSES, "width": options.width, "size": list(model.size), "group": "hair", "length": flow.size}
    row = step_row(f"harmonized/slider {sizes(options)}", asked, {}, found, op="harmonized")
    return {**row, "mode": "forward", "baseline": "full"}


# ------------------------------------------------------------------------------------------------------------ command


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line -> options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_harmonized", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=PARTS, help="what is measured")
    parser.add_argument("--width", type=int, default=32, help="ngf and ndf (default %(default)s)")
    parser.add_argument("--shipped", action="store_true", help="the sizes of the networks that ship, --width among them")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures of step and edit (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="rounds (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=120.0, help="soft limit for the timing of a table (default 120)")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="skip peak memory")
    parser.add_argument("--data", metavar="DIR", help="folder with images/ and labels/ of faces")
    parser.add_argument("--quick", action="store_true", help="tiny networks, one round: does it run?")
    cpu.add_option(parser)
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown at the end")
    parser.add_argument("--out", type=Path, help="JSON (default benchmarks/results/harmonized_cpu.json)")
    options = parser.parse_args(arguments)
    if options.width < 1:
        parser.error(f"--width: expected a positive number, got {options.width}")
    if options.quick:
        if options.out is None:
            parser.error("--out: expected a file with --quick, whose numbers say nothing; got none")
        options.width, options.size, options.repeat, options.memory, options.shipped = 4, 64, 1, False, False
    elif options.shipped:
        options.width = SHIPPED_WIDTH
    options.out = options.out or RESULTS / f"harmonized_{cpu.suffix(torch.device('cpu'), options.cpu)}.json"
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
    labels = label_source(options.data)
    result = heading("harmonized", labels=labels.text, repeat=options.repeat)
    print(machine_line(result["machine"]))
    start = time.perf_counter()
    runs = {"step": run_step, "edit": run_edit, "pooling": run_pooling, "attention": run_attention, "codes": run_codes}
    result["rows"] = jsonable(runs[options.part](options, labels))
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
