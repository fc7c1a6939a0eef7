"""Measure the class- and layer-wise VAE: a training step against its number of levels and classes, its parts, the pooling.

    python -m benchmarks.run_clvae PART [--width 32] [--classes 19,151] [--levels 1,2,3,4,5,6] [--repeat N] [--cpu avx2]

PART is one of

* levels: a training step for every number of levels L and of classes K;
* step: a training step with peak memory, and its parts: the encoder with the codes, the generator, the discriminator;
* edit: the shipped model's image after other codes of all classes at one level, or at all of them;
* pooling: the codes of K classes from five levels of a 256 x 256 image, sampled and embedded (Eq. 12 to 17).

Contenders share weights, label maps and noise, and take turns:

* published: plain PyTorch by the paper's equations: codes class by class, a dense map of vectors for every block (Eq. 12),
  NCHW, the discriminator on [map | image];
* dense: our networks under use_plan("dense") and use_backend("reference"), channels_last;
* per_class (pooling alone): the maxima class by class, everything else for all classes at once, and no map;
* ours: raw labels to updated weights, the analysis of the label map (a fresh RegionMap) inside the clock;
* full (edit alone): ours, all blocks of the generator; ours begins at the first block that the level changes;
* floor: ours without the generator's region norms. floor_vgg: a step's perceptual loss alone, which is the same for all.

A step is the generator's phase and the discriminator's, with all losses but the perceptual one, and both optimisers;
averaged weights and data are not in it. The rows of `levels` that have as many classes take turns all together.

Gate: losses and gradients of the first step (of the pooling: codes, vectors, gradients) by the rule of
mixsyn_fast/measure/gate.py, dense as the reference; for a step with the floor KINKS, in the 2-norm. Rows of
another part, or of other settings, in the same file are kept where machine and commit are the same.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from mixsyn_fast.models.blocks import SLOPE
from mixsyn_fast.models.clvae.codes import ImageCodes
from mixsyn_fast.models.clvae.config import EncoderConfig, GeneratorConfig
from mixsyn_fast.models.clvae.model import CLVAE
from mixsyn_fast.models.clvae.networks import Codes, Encoder, Generator, Latents
from mixsyn_fast.models.clvae.task import CLVAETask, Config, fitted
from mixsyn_fast.models.data import Batch
from mixsyn_fast.models.discriminators import DiscriminatorConfig
from mixsyn_fast.models.losses.perceptual import installed_vgg, perceptual_loss
from mixsyn_fast.models.pictures.options import drawn_source
from mixsyn_fast.models.pictures.picture import pictures_of
from mixsyn_fast.models.plain import dense_reference, randomise, without_norms
from mixsyn_fast.models.reconstruction import ReconstructionTask
from mixsyn_fast.models.sheets import to_uint8
from mixsyn_fast.models.training.trainer import make_optimizer
from torch import Tensor, nn

from mixsyn_fast.layers import ClassCodes, ClassEmbedding, ClassLatents
from mixsyn_fast.measure.clock import Call, Timing, interleave
from mixsyn_fast.measure.gate import Gate, gate
from mixsyn_fast.progress import progress
from mixsyn_fast.region_map import RegionMap
from mixsyn_fast.runtime import keep_memory
from mixsyn_fast.writing import jsonable

from . import cpu, schema, tables
from .cases import Labels, label_source
from .run_training import merged
from .schema import RESULTS, Goal, Measured
from .timing import heading, machine_line, memory_of, save

PARTS = ("levels", "step", "edit", "pooling")
SIZE, BATCH = 128, 4  # of a training step
PLAIN = ("published", "dense")
# Batch statistics of few pixels amplify roundings, and an activation or a term of the hinge whose argument float32 puts on
# the other side of its kink moves a gradient by its share: dense itself is off by 5e-5 to 4e-3, as chance has it.
KINKS = 4e-3
MOST_OF_ONE_LEVEL, LEAST_STEP, LEAST_POOLING = 1.15, 2.5, 5.0  # goals
_WIDTHS, _POOLED = (64, 128, 256, 512, 512), (128, 64, 32, 16, 8)  # of the pooling: channels and sides of the five levels
Outputs = dict[str, Tensor]


@contextmanager
def same_noise(seed: int) -> Iterator[None]:
    """Let normal noise depend on the seed alone, not on the dtype that is asked for."""
    source = torch.Generator().manual_seed(seed)

    draw = torch.randn

    def normal(*shape: Any, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> Tensor:
        return draw(*shape, generator=source).to(device=device, dtype=dtype)

    def of_shape(value: Tensor, **_: Any) -> Tensor:
        return draw(value.shape, generator=source).to(value)

    with mock.patch.object(torch, "randn", normal), mock.patch.object(torch, "randn_like", of_shape):
        yield


# ------------------------------------------------------------------------------------------------- published form


def maxima(features: Tensor, labels: Tensor, count: int) -> Iterator[tuple[int, int, Tensor | None]]:
    """Yield (image, class, Eq. 17's maxima (C,), None for an absent class), class by class.

    Args:
        features: (B, C, h, w).
        labels: (B, h, w) integer.
        count: K.
    """
    for b in range(features.shape[0]):
        there = set(labels[b].unique().tolist())
        for k in range(count):
            yield b, k, features[b][:, labels[b] == k].amax(1) if k in there else None


def published_latents(heads: ClassCodes, levels: Sequence[Tensor], regions: RegionMap) -> ClassLatents:
    """Eq. 13 to 17, class by class: pooling, activation and linear maps of one class of one image at a time."""
    found: list[list[Tensor]] = [[], [], []]
    count = regions.num_regions
    for number, features in enumerate(levels, 1):
        labels = regions.labels_at((int(features.shape[2]), int(features.shape[3])))
        zero = features.new_zeros(heads.code_length)
        means, variances, present = [], [], []
        for _, _, pooled in maxima(features, labels, count):
            active = None if pooled is None else F.leaky_relu(pooled, heads.negative_slope)
            means.append(zero if active is None else getattr(heads, f"fc_mu{number}")(active))
            variances.append(zero if active is None else getattr(heads, f"fc_var{number}")(active))
            present.append(active is not None)
        shape = (features.shape[0], count, heads.code_length)
        found[0].append(torch.stack(means).view(shape))
        found[1].append(torch.stack(variances).view(shape))
        found[2].append(torch.tensor(present, device=features.device).view(shape[:2]))
    return ClassLatents(*map(tuple, found))


def published_map(embedding: nn.Embedding, codes: Tensor, labels: Tensor) -> Tensor:
    """Eq. 12: the map (B, N, h, w) of the codes (B, K, N) of the classes of the pixels, plus that of their embeddings."""
    image = torch.arange(codes.shape[0], device=labels.device)[:, None, None]
    inside = labels.clamp(min=0).long()
    found = codes[image, inside] + F.embedding(inside, embedding.weight)
    return (found * (labels >= 0)[..., None]).permute(0, 3, 1, 2).contiguous()


def published_encoding(encoder: Encoder, image: Tensor, regions: RegionMap) -> Latents:
    """The encoder with its codes class by class."""
    side = encoder.config.image_size
    x = image if image.shape[2:] == (side, side) else F.interpolate(image, size=(side, side), mode="bilinear")
    levels = []
    for i in range(1, encoder.config.depth + 1):
        before = getattr(encoder, f"layer{i}")(x)
        if i in encoder.config.levels:
            levels.append(before)
        x = F.leaky_relu(before, SLOPE)
    x = F.adaptive_avg_pool2d(x, 4).flatten(1)
    classes = published_latents(encoder, levels, regions) if levels else None
    return Latents(encoder.fc_mu(x), encoder.fc_var(x), classes)


def published_image(generator: Generator, regions: RegionMap, codes: Codes) -> Tensor:
    """Eq. 10: SPADE blocks, each fed by a dense map of vectors (Eq. 12), or by the one-hot map."""
    config = generator.config
    code_of = dict(zip(config.levels, codes.classes, strict=True))
    x = generator.fc(codes.z).view(-1, config.channels(16), *config.start_size)
    for name in generator.block_names:
        block: Any = getattr(generator, name)
        size = (int(x.shape[2]), int(x.shape[3]))
        if name in config.level_of_block:
            given = published_map(generator.embedding, code_of[config.level_of_block[name]], regions.labels_at(size))
        else:
            given = regions.onehot(size, x.dtype)

        def spade(layer: Any, value: Tensor, given: Tensor = given) -> Tensor:
            hidden = layer.mlp_shared(given)
            return layer.param_free_norm(value) * (1 + layer.mlp_gamma(hidden)) + layer.mlp_beta(hidden)

        shortcut = block.conv_s(spade(block.norm_s, x)) if block.learned_shortcut else x
        hidden = block.conv_0(F.leaky_relu(spade(block.norm_0, x), SLOPE))
        x = shortcut + block.conv_1(F.leaky_relu(spade(block.norm_1, hidden), SLOPE))
        if name in generator.doubled_after:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
    return torch.tanh(generator.conv_img(F.leaky_relu(x, SLOPE)))


class PublishedTask(CLVAETask):
    """The same training with the networks of the paper in their published form."""

    def fake(
        self, batch: Batch, regions: RegionMap, networks: Mapping[str, nn.Module], sample: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As CLVAETask has it."""
        encoder, generator = networks["encoder"], networks["generator"]
        assert isinstance(encoder, Encoder) and isinstance(generator, Generator)
        latents = published_encoding(encoder, batch.image, regions)
        image = published_image(generator, regions, latents.codes(self.num_regions, sample=sample))
        return image, {"kld": self.config.kld * latents.kld()}


# ---------------------------------------------------------------------------------------------------- a training step


class Step:
    """One contender's training: a task of its own, its optimisers, its mode."""

    def __init__(self, task: ReconstructionTask, image: Tensor, labels: Tensor, *, dense: bool = False) -> None:
        self.task, self.image, self.labels = task, image, labels
        self.mode: Callable[[], AbstractContextManager[Any]] = dense_reference if dense else nullcontext
        self.parameters = {
            name: [p for network in phase.networks for p in task.networks[network].parameters()]
            for name, phase in task.phases.items()
        }
        self.optimizers = {name: make_optimizer(phase, self.parameters[name]) for name, phase in task.phases.items()}
        for network in task.networks.values():
            network.train()

    def batch(self) -> Batch:
        """The batch with fresh region maps: nothing about the labels is known yet."""
        names = tuple(map(str, range(len(self.labels))))
        return Batch(self.image, RegionMap(self.labels, self.task.num_regions), names, torch.arange(len(names)))

    def phase(self, name: str, batch: Batch) -> dict[str, Tensor]:
        """Losses of a phase, whose gradients are then there."""
        for phase, parameters in self.parameters.items():
            for parameter in parameters:
                parameter.requires_grad_(phase == name)
        losses = self.task.losses(name, batch, 1)
        torch.stack(list(losses.values())).sum().backward()
        return {f"{name}/{key}": value.detach() for key, value in losses.items()}

    def __call__(self) -> None:
        """One step, after which no gradient is left."""
        with self.mode():
            batch = self.batch()
            for name, optimizer in self.optimizers.items():
                self.phase(name, batch)
                optimizer.step()
                optimizer.zero_grad()

    def first(self) -> Outputs:
        """Losses and gradients of the first step; the weights stay."""
        found: Outputs = {}
        with self.mode(), same_noise(1):
            batch = self.batch()
            for name in self.optimizers:
                found |= self.phase(name, batch)
                found[f"{name} gradients"] = torch.cat(
                    [p.grad.flatten() for p in self.parameters[name] if p.grad is not None]
                )
                self.optimizers[name].zero_grad()
        return found


def build(classes: int, levels: int, width: int, size: int = SIZE) -> CLVAETask:
    """Return the training task: all networks of this width, hidden layers and codes as published; no perceptual loss."""
    torch.manual_seed(0)
    config = Config(
        generator=GeneratorConfig(spectral_norm=True, ngf=width, num_levels=levels),
        encoder=EncoderConfig(spectral_norm=True, ndf=width),
        discriminator=DiscriminatorConfig(ndf=width),
        vgg=0.0,
        init_gain=0.0,  # weights of which every branch counts
    )
    task = CLVAETask(fitted(config, [str(k) for k in range(classes)], (size, size), False))
    randomise(task.networks["generator"], 0)
    return task


def contenders(task: CLVAETask, image: Tensor, labels: Tensor) -> dict[str, Step]:
    """Return the same training as each contender has it; ours last, in the task itself."""
    published, dense = copy.deepcopy(task), copy.deepcopy(task)
    published.__class__ = PublishedTask
    for each in (dense, task):
        for network in each.networks.values():
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    last = image.contiguous(memory_format=torch.channels_last)  # as the loader gives them
    return {
        "published": Step(published, image, labels, dense=True),
        "dense": Step(dense, last, labels, dense=True),
        "ours": Step(task, last, labels),
    }


def gates(steps: Mapping[str, Step]) -> dict[str, Gate]:
    """Judge the first step of all against dense in float64."""
    dense = steps["dense"]
    double = copy.deepcopy(dense.task)
    for network in double.networks.values():
        network.double()
    exact = Step(double, dense.image.double(), dense.labels, dense=True).first()
    del double
    reference = dense.first()
    found = {name: reference if name == "dense" else step.first() for name, step in steps.items()}
    return {name: gate(own, reference, exact, floor=KINKS, elements=False) for name, own in found.items()}


def pictures(labels: Labels, classes: int, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Return images (B, 3, size, size) and labels (B, size, size): faces, or streets where there are more classes."""
    return labels.tensors("face" if classes <= 19 else "street", BATCH, size)


def step_row(
    case: str,
    asked: dict[str, Any],
    verdicts: Mapping[str, Gate],
    timings: Mapping[str, Timing],
    op: str = "clvae",
) -> dict[str, Any]:
    """A row from the timings of the contenders that passed; the others have a note."""
    entries: dict[str, Measured] = {}
    for name, verdict in verdicts.items():
        note = "" if verdict.passed else f"wrong result: {verdict.what} off by {verdict.error:.1e} ({verdict.allowed:.1e})"
        entries[name] = Measured(gate=verdict, timing=timings.get(name), note=note)
    for name in timings:
        entries.setdefault(name, Measured(timing=timings[name]))
    return schema.row(op=op, case=case, mode="training", settings=asked, contenders=entries, baseline="dense")


def timed(calls: Mapping[str, Call], options: argparse.Namespace, what: str) -> dict[str, Timing]:
    """Time calls in turns; says when the clock runs, for whoever keeps the machine quiet."""
    print(f"timing {what}", flush=True)
    with progress(f"timing {what}"):
        found = interleave(calls, repeat=options.repeat, warmup=1, budget_s=options.seconds)
    print(f"timed {what}", flush=True)
    return found


def run_levels(options: argparse.Namespace, labels: Labels) -> list[dict[str, Any]]:
    """A row for every number of levels and classes."""
    rows = []
    for classes in options.classes:
        image, map_ = pictures(labels, classes, options.size)
        steps, verdicts = {}, {}
        for count in options.levels:
            with progress(f"gates of K {classes}, L {count}"):
                steps[count] = contenders(build(classes, count, options.width, options.size), image, map_)
                verdicts[count] = gates(steps[count])
        calls = {
            f"{count}/{name}": step
            for count, of in steps.items()
            for name, step in of.items()
            if verdicts[count][name].passed
        }
        found = timed(calls, options, f"levels K {classes}")
        for count in options.levels:
            own = {name.split("/")[1]: timing for name, timing in found.items() if name.startswith(f"{count}/")}
            asked = settings_of(options, classes, count)
            row = step_row(f"clvae/levels k{classes} L{count} w{options.width}", asked, verdicts[count], own)
            first = found.get(f"{options.levels[0]}/ours")
            if first is not None and "ours" in own:
                row["targets"] = [
                    goal(f"L = {options.levels[0]}", own["ours"].median / first.median, most=MOST_OF_ONE_LEVEL)
                ]
            rows.append(row)
        del steps, calls
        gc.collect()
    return rows


def settings_of(options: argparse.Namespace, classes: int, levels: int) -> dict[str, Any]:
    """What was asked for."""
    size = [options.size, options.size]
    return {"classes": classes, "levels": levels, "width": options.width, "size": size, "batch": BATCH}


def goal(what: str, got: float, *, least: float | None = None, most: float | None = None) -> Goal:
    """A goal of ours, and what became of it."""
    met = (least is None or got >= least) and (most is None or got <= most)
    return Goal("ours", what, least, most, got, met)


def run_step(options: argparse.Namespace, labels: Labels) -> list[dict[str, Any]]:
    """The whole step, with memory, and its parts."""
    rows = []
    for classes in options.classes:
        image, map_ = pictures(labels, classes, options.size)
        with progress(f"gates of K {classes}"):
            steps = contenders(build(classes, options.levels[-1], options.width, options.size), image, map_)
            verdicts = gates(steps)
        passing = {name: step for name, step in steps.items() if verdicts[name].passed}
        calls: dict[str, Call] = {f"step/{name}": step for name, step in passing.items()}
        bare = copy.deepcopy(steps["ours"].task)
        bare.networks["generator"] = without_norms(bare.networks["generator"])
        calls["step/floor"] = floor = Step(bare, steps["ours"].image, map_)
        if installed_vgg() is not None:
            calls["step/floor_vgg"] = vgg_call(floor)
        for name, step in passing.items():
            calls |= {f"{part}/{name}": call for part, call in parts_of(step).items()}
        calls["generator/floor"] = parts_of(floor)["generator"]
        found = timed(calls, options, f"step K {classes}")
        for part in dict.fromkeys(name.split("/")[0] for name in calls):
            own = {name.split("/")[1]: timing for name, timing in found.items() if name.startswith(f"{part}/")}
            asked = {**settings_of(options, classes, options.levels[-1]), "part": part}
            row = step_row(f"clvae/{part} k{classes} w{options.width}", asked, verdicts, own)
            if part == "step":
                for name, step in passing.items() if options.memory else ():
                    memory = memory_of(step)
                    row["contenders"][name].peak_bytes = None if memory is None else memory.peak
                if {"ours", "dense"} <= own.keys():
                    row["targets"] = [goal("dense", own["dense"].median / own["ours"].median, least=LEAST_STEP)]
            rows.append(row)
        del steps, calls, passing, floor, bare
        gc.collect()
    return rows


def vgg_call(step: Step) -> Call:
    """The perceptual loss of a step, forward and backward."""
    network = perceptual_loss(Config())
    assert network is not None

    def call() -> None:
        network(step.image.clone().requires_grad_(), step.image.flip(0)).backward()

    return call


def parts_of(step: Step) -> dict[str, Call]:
    """Parts of a step, each forward and backward: encoder with sampled codes and KLD, generator, discriminator."""
    task, networks = step.task, step.task.networks
    encoder, generator, discriminator = networks["encoder"], networks["generator"], networks["discriminator"]
    assert isinstance(encoder, Encoder) and isinstance(generator, Generator)
    published = isinstance(task, PublishedTask)
    codes = generator.prior(len(step.labels), torch.Generator().manual_seed(3))

    def finish(value: Tensor) -> None:
        value.backward()
        for network in networks.values():
            network.zero_grad()

    def encode() -> Tensor:
        regions = step.batch().regions
        latents = published_encoding(encoder, step.image, regions) if published else encoder(step.image, regions)
        drawn = latents.codes(task.num_regions, sample=True)
        return latents.kld() + drawn.z.sum() + torch.stack([level.sum() for level in drawn.classes]).sum()

    def generate() -> Tensor:
        given = Codes(codes.z, tuple(level.clone().requires_grad_() for level in codes.classes))
        regions = step.batch().regions
        return (published_image(generator, regions, given) if published else generator(regions, given)).square().mean()

    def judge() -> Tensor:
        features = discriminator(torch.cat((step.image.flip(0), step.image)), step.batch().regions)
        return torch.stack([scale[-1].mean() for scale in features]).sum()

    def part(function: Callable[[], Tensor]) -> Call:
        def call() -> None:
            for network in networks.values():
                network.requires_grad_(True)
            with step.mode():
                finish(function())

        return call

    return {"encoder": part(encode), "generator": part(generate), "discriminator": part(judge)}


# ------------------------------------------------------------------------------------------------------------ pooling


class Pooling:
    """The codes of all classes from the levels of a 256 x 256 image, drawn, and embedded."""

    def __init__(
        self, labels: Tensor, classes: int, widths: Sequence[int] = _WIDTHS, sides: Sequence[int] = _POOLED
    ) -> None:
        torch.manual_seed(0)
        self.labels, self.count = labels, classes
        self.heads = ClassCodes(widths, classes, negative_slope=SLOPE)
        self.embedding = ClassEmbedding(classes, classes)
        self.features = [
            torch.randn(len(labels), width, side, side).contiguous(memory_format=torch.channels_last)
            for width, side in zip(widths, sides, strict=True)
        ]
        self.grad = torch.randn(len(widths), len(labels), classes, classes)

    def double(self) -> Pooling:
        """The same in float64."""
        made = copy.deepcopy(self)
        made.heads.double()
        made.embedding.double()
        made.features, made.grad = [each.double() for each in self.features], self.grad.double()
        return made

    def per_class(self, levels: Sequence[Tensor], regions: RegionMap) -> ClassLatents:
        """Maxima class by class; linear maps of all at once."""
        means, variances, presents = [], [], []
        for number, features in enumerate(levels, 1):
            size = (int(features.shape[2]), int(features.shape[3]))
            zero = features.new_zeros(features.shape[1])
            found = [pooled for _, _, pooled in maxima(features, regions.labels_at(size), self.count)]
            shape = (features.shape[0], self.count)
            present = torch.tensor([pooled is not None for pooled in found]).view(shape)
            values = torch.stack([zero if pooled is None else pooled for pooled in found]).view(*shape, -1)
            active = F.leaky_relu(values, self.heads.negative_slope)
            for into, name in ((means, "fc_mu"), (variances, "fc_var")):
                into.append(torch.where(present[:, :, None], getattr(self.heads, f"{name}{number}")(active), 0))
            presents.append(present)
        return ClassLatents(tuple(means), tuple(variances), tuple(presents))

    def run(self, name: str, backward: bool) -> Outputs:
        """Run as a contender; returns the vectors (levels, B, K, N), and with `backward` the gradients."""
        regions = RegionMap(self.labels, self.count)
        with torch.set_grad_enabled(backward), dense_reference() if name == "dense" else nullcontext(), same_noise(1):
            levels = [each.detach().requires_grad_(backward) for each in self.features]
            heads = {"published": lambda *given: published_latents(self.heads, *given), "per_class": self.per_class}
            drawn = heads.get(name, self.heads)(levels, regions).sample()
            vectors = torch.stack([self.embedding(codes) for codes in drawn])
            if name == "published":  # and the map that each block then gets, at the sizes of the contract
                for codes, features in zip(drawn, levels, strict=True):
                    published_map(self.embedding, codes, regions.labels_at((features.shape[2] // 2, features.shape[3] // 2)))
            found = {"vectors": vectors.detach()}
            if backward:
                vectors.backward(self.grad)
                for number, each in enumerate(levels, 1):
                    assert each.grad is not None
                    found[f"gradient of level {number}"] = each.grad
                for module in (self.heads, self.embedding):
                    for key, parameter in module.named_parameters():
                        assert parameter.grad is not None
                        found[key] = parameter.grad
                    module.zero_grad()
        return found


def run_pooling(options: argparse.Namespace, labels: Labels) -> list[dict[str, Any]]:
    """Forward, and forward with backward."""
    rows = []
    classes = options.classes[-1]
    _, map_ = pictures(labels, classes, 256)
    bench = Pooling(map_, classes)
    double = bench.double()
    for mode in ("forward", "both"):
        backward = mode == "both"
        with progress(f"gates of the pooling, {mode}"):
            exact = double.run("dense", backward)
            found = {name: bench.run(name, backward) for name in ("published", "per_class", "dense", "ours")}
            verdicts = {name: gate(own, found["dense"], exact, elements=False) for name, own in found.items()}
        del exact, found
        calls = {
            name: (lambda name=name, backward=backward: bench.run(name, backward))
            for name in verdicts
            if verdicts[name].passed
        }
        timings = timed(calls, options, f"pooling {mode}")
        asked = {"classes": classes, "batch": BATCH, "size": [256, 256], "widths": _WIDTHS, "sides": _POOLED}
        row = {**step_row(f"clvae/pooling k{classes} {mode}", asked, verdicts, timings), "mode": mode}
        if {"ours", "per_class"} <= timings.keys():
            row["targets"] = [goal("per_class", timings["per_class"].median / timings["ours"].median, least=LEAST_POOLING)]
        rows.append(row)
    return rows


# --------------------------------------------------------------------------------------------------------------- edit


def run_edit(options: argparse.Namespace, labels: Labels) -> list[dict[str, Any]]:
    """A row per level, and one for all of them: codes to image as `CLVAE.generate` does it, two sets of codes in turns."""
    del labels  # the shipped model's classes are those of facades
    model = CLVAE.shipped()
    picture = pictures_of(drawn_source(model.classes, model.size, 1))[0]
    own = model.encode(picture.image, picture.labels)
    double = copy.deepcopy(model.generator).double()
    rows = []
    for level in (*(each for each in model.levels if each != model.levels[-1]), 0):  # the coarsest is a full pass
        new = dict.fromkeys(model.classes, model.prior(1))
        both = (own, own.replaced(new, [level] if level else None))
        regions = RegionMap(torch.from_numpy(picture.labels)[None].long(), len(model.classes), ignore_index=-1)

        def whole(network: Generator, codes: ImageCodes, regions: RegionMap = regions) -> Tensor:
            given = ImageCodes.batch([codes])
            weight = network.fc.weight
            assert isinstance(weight, Tensor)
            given = Codes(given.z.to(weight), tuple(each.to(weight) for each in given.classes))
            return torch.tanh(network.forward_features(regions, given))

        model.generate(picture.labels, both[0])
        made = model.generate(picture.labels, both[1])
        with torch.no_grad(), dense_reference():
            exact, dense = ({"image": whole(each, both[1])} for each in (double, model.generator))
        with torch.no_grad():
            full = {"image": whole(model.generator, both[1])}
        if not np.array_equal(made.image, to_uint8(full["image"])[0]):
            raise ValueError(f"edit at level {level}: expected the image of a full pass bit for bit")
        verdict = gate(full, dense, exact)  # of ours too: bit for bit the same image
        turns: dict[str, Iterator[ImageCodes]] = {name: itertools.cycle(both) for name in ("dense", "full", "ours")}

        @torch.no_grad()
        def plain(turns: Any = turns, whole: Any = whole) -> object:
            with dense_reference():
                return to_uint8(whole(model.generator, next(turns["dense"])))

        @torch.no_grad()
        def complete(turns: Any = turns, whole: Any = whole) -> object:
            return to_uint8(whole(model.generator, next(turns["full"])))

        def resumed(turns: Any = turns) -> object:
            return model.generate(picture.labels, next(turns["ours"]))

        title = f"edit of level {level}" if level else "edit of all levels"
        verdicts = {"dense": gate(dense, dense, exact), "full": verdict, "ours": verdict}
        calls: dict[str, Call] = {"dense": plain, "full": complete, "ours": resumed}
        if not level:  # as much work
            del calls["full"], verdicts["full"]
        timings = timed(calls if verdict.passed else {}, options, title)
        asked = {"level": level, "classes": len(model.classes), "size": list(model.size), "blocks": list(made.blocks)}
        rows.append({**step_row(f"clvae/{title}", asked, verdicts, timings), "mode": "forward"})
    return rows


# ------------------------------------------------------------------------------------------------------------ command


def numbers(text: str) -> list[int]:
    """Read a list of positive numbers."""
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"expected positive numbers, got {text!r}")
    return [int(part) for part in parts]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line -> options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_clvae", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=PARTS, help="what is measured")
    parser.add_argument("--width", type=int, default=32, help="ngf and ndf of all networks (default %(default)s)")
    parser.add_argument("--size", type=int, default=SIZE, help="side of the pictures of a step (default %(default)s)")
    parser.add_argument("--classes", type=numbers, default=[19, 151], help="K (default 19,151)")
    parser.add_argument(
        "--levels", type=numbers, default=[1, 2, 3, 4, 5, 6], help="L; `step` takes the last (default 1 to 6)"
    )
    parser.add_argument("--repeat", type=int, default=5, help="rounds (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=200.0, help="soft limit for the timing of a table (default 200)")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="skip peak memory")
    parser.add_argument("--data", metavar="DIR", help="folder with images/ and labels/ of faces")
    cpu.add_option(parser)
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown at the end")
    parser.add_argument("--out", type=Path, help="JSON (default benchmarks/results/clvae_cpu.json)")
    options = parser.parse_args(arguments)
    if options.width < 1:
        parser.error(f"--width: expected a positive number, got {options.width}")
    stem = "clvae_edit" if options.part == "edit" else "clvae"
    options.out = options.out or RESULTS / f"{stem}_{cpu.suffix(torch.device('cpu'), options.cpu)}.json"
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
    result = heading("clvae", labels=labels.text, repeat=options.repeat)
    print(machine_line(result["machine"]))
    start = time.perf_counter()
    run = {"levels": run_levels, "step": run_step, "edit": run_edit, "pooling": run_pooling}[options.part]
    result["rows"] = jsonable(run(options, labels))
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
