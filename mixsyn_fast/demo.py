"""`mixsyn-fast demo`: the SEAN generator in plain PyTorch and with mixsyn_fast, timed, compared and drawn in one PNG.

The weights are random, with three adjustments that make the pictures worth comparing: blending factors, noise and
biases are not zero; running statistics come from the label maps at hand; and the last convolution is fitted by least
squares, so that the output resembles the input image. The work done is that of a trained generator.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import re
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import backend
from .progress import progress
from .runtime import keep_memory

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

    from .region_map import RegionMap

NUM_REGIONS = 19
PARTS = ("label map", "style encoder", "region norms", "convolutions", "rest")
_COLOURS = {
    "label map": (240, 160, 60),
    "style encoder": (150, 110, 200),
    "region norms": (220, 80, 90),
    "convolutions": (70, 130, 200),
    "rest": (150, 155, 165),
}

# ------------------------------------------------------------------------------------ the generator and its variants


# torch's default initialisation leaves the label maps next to no influence; these factors give scale and shift a
# spread of about one half and one
_GAINS = (
    (r"mlp_shared\.0\.weight$", 6.0),
    (r"mlp_gamma\.weight$", 1.5),
    (r"mlp_beta\.weight$", 3.0),
    (r"fc_mu\d+\.weight$", 6.0),
    (r"conv_gamma\.weight$", 2.0),
    (r"conv_beta\.weight$", 4.0),
)


def randomise(generator: nn.Module, seed: int) -> None:
    """Seeded values for everything that starts at 0, so that every branch of every layer counts."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in generator.named_parameters():
            last = name.rsplit(".", 1)[-1]
            if last in ("blending_gamma", "blending_beta"):
                value.copy_(torch.randn(value.shape, generator=rng) * 0.7 + 0.5)
            elif last == "noise_var":
                value.copy_(torch.randn(value.shape, generator=rng) * 0.05)
            for pattern, gain in _GAINS:
                if re.search(pattern, name):
                    value.mul_(gain)


@contextmanager
def _recording_statistics(generator: nn.Module) -> Iterator[None]:
    """Training mode in which running statistics become exactly those of the batch."""
    norms = [m for m in generator.modules() if getattr(m, "running_mean", None) is not None]
    momenta = [m.momentum for m in norms]
    was_training = generator.training
    generator.train()
    for m in norms:
        m.momentum = 1.0
    try:
        yield
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
        generator.train(was_training)


def calibrate(generator: nn.Module, *inputs: Any, **keywords: Any) -> None:
    """Take the running statistics from one batch and scale the last convolution to outputs of about 0.6."""
    with torch.no_grad(), _recording_statistics(generator):
        generator.forward_features(*inputs, **keywords)  # type: ignore[operator]
    generator.eval()
    with torch.no_grad():
        out = generator.forward_features(*inputs, **keywords)  # type: ignore[operator]
        last: Any = generator.conv_img
        mean = out.mean((0, 2, 3))
        last.bias.sub_(mean)
        for parameter in (last.weight, last.bias):
            parameter.mul_(0.6 / max(float((out - mean[:, None, None]).std()), 1e-6))


def fit_last_layer(generator: nn.Module, images: Tensor, *inputs: Any, **keywords: Any) -> None:
    """Fit conv_img by ridge regression so that tanh(output) resembles `images` (B, 3, H, W) in [-1, 1]."""
    last: Any = generator.conv_img
    caught: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _module, arguments: caught.append(arguments[0].detach()))
    try:
        with torch.no_grad():
            generator.forward_features(*inputs, **keywords)  # type: ignore[operator]
    finally:
        hook.remove()
    features = caught[0]
    width = 9 * features.shape[1] + 1
    normal = torch.zeros(width, width, dtype=torch.float64, device=features.device)
    right = torch.zeros(width, 3, dtype=torch.float64, device=features.device)
    for f, image in zip(features, images, strict=True):
        columns = F.unfold(f[None].contiguous().float(), 3, padding=1)[0].t()
        columns = torch.cat([columns, columns.new_ones(len(columns), 1)], 1)
        target = torch.atanh(image.float().clamp(-0.93, 0.93)).flatten(1).t()
        normal += (columns.t() @ columns).double()
        right += (columns.t() @ target).double()
    ridge = 1e-3 * normal.diagonal().mean() * torch.eye(width, dtype=torch.float64, device=normal.device)
    solution = torch.linalg.solve(normal + ridge, right).t()
    with torch.no_grad():
        last.weight.copy_(solution[:, :-1].reshape(last.weight.shape))
        last.bias.copy_(solution[:, -1])


def shared_copy(module: nn.Module) -> Any:
    """A copy of the module tree that shares every parameter and buffer with the original."""
    memo: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, memo)


def plain_copy(generator: nn.Module) -> Any:
    """The generator with torch's own convolutions and contiguous (NCHW) activations, sharing its weights.

    Run it under `use_plan("dense")` and `use_backend("reference")`: that is the ordinary PyTorch form.
    """
    plain = shared_copy(generator)
    for module in plain.modules():
        if isinstance(module, nn.Conv2d) and type(module).__name__ == "FastConv2d":
            module.__class__ = nn.Conv2d
    first_layer = plain.first_layer
    plain.first_layer = lambda *a, **k: first_layer(*a, **k).contiguous()
    return plain


class NoNorm(nn.Module):
    """What remains of a region-adaptive normalisation when it costs nothing: its activation."""

    def forward(self, x: Tensor, *_: Any, negative_slope: float | None = None, **__: Any) -> Tensor:
        """Return x, after LeakyReLU where the layer has one."""
        return x if negative_slope is None else F.leaky_relu(x, negative_slope)


def without_norms(generator: nn.Module) -> Any:
    """The same network (weights shared) with every region-adaptive normalisation removed: the floor."""
    from .layers import CLADENorm, SEANNorm, SPADENorm

    bare = shared_copy(generator)
    for parent in list(bare.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SPADENorm | SEANNorm | CLADENorm):
                setattr(parent, name, NoNorm())
    return bare


@contextmanager
def dense_reference() -> Iterator[None]:
    """The plain PyTorch form of every layer and op."""
    with backend.use_plan("dense"), backend.use_backend("reference"):
        yield


# ------------------------------------------------------------------------------------------------ time and its parts


class _OutOfTimeError(BaseException):
    """Not an Exception: torch.compile wraps those."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the body after `seconds`; without a limit where signals cannot be used."""
    usable = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not usable or seconds <= 0:
        yield
        return

    def stop(*_: Any) -> None:
        raise _OutOfTimeError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _OutOfTimeError:
        raise TimeoutError(f"not finished after {seconds:.0f} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def take_turns(calls: dict[str, Callable[[], Any]], device: torch.device, repeat: int) -> dict[str, float]:
    """Median seconds of each call after one warm-up; the calls take turns, so that noise hits all alike."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeat + 1):
        for name, call in calls.items():
            with progress(f"running {name} ({'warm-up' if turn == 0 else f'{turn} of {repeat}'})"):
                start = _now(device)
                call()
                seconds = _now(device) - start
            if turn > 0:
                samples[name].append(seconds)
    return {name: statistics.median(values) for name, values in samples.items()}


def time_parts(generator: nn.Module, call: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Split one call into PARTS, in seconds: hooks around modules, and a clock around the label analysis."""
    from .layers import CLADENorm, SEANNorm, SPADENorm
    from .region_map import RegionMap

    spent = dict.fromkeys(PARTS, 0.0)
    open_parts: list[tuple[str, float, float]] = []  # part, start, time that inner parts took
    hooks = []

    def enter(part: str) -> None:
        open_parts.append((part, _now(device), 0.0))

    def leave() -> None:
        part, start, inner = open_parts.pop()
        duration = _now(device) - start
        spent[part] += duration - inner
        if open_parts:
            outer, outer_start, outer_inner = open_parts[-1]
            open_parts[-1] = (outer, outer_start, outer_inner + duration)

    def watch(module: nn.Module, part: str) -> None:
        hooks.append(module.register_forward_pre_hook(lambda *_: enter(part)))
        hooks.append(module.register_forward_hook(lambda *_: leave()))

    in_norms: set[nn.Module] = set()
    for module in generator.modules():
        if isinstance(module, SPADENorm | SEANNorm | CLADENorm):
            in_norms.update(module.modules())
            watch(module, "region norms")
    encoder = getattr(generator, "Zencoder", None)
    in_encoder = set(encoder.modules()) if encoder is not None else set()
    if encoder is not None:
        watch(encoder, "style encoder")
    for module in generator.modules():
        if isinstance(module, nn.Conv2d) and module not in in_norms and module not in in_encoder:
            watch(module, "convolutions")

    def clocked(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            enter("label map")
            try:
                return method(*arguments, **keywords)
            finally:
                leave()

        return run

    methods = {n: getattr(RegionMap, n) for n in ("__init__", "patterns", "plan", "onehot", "areas", "labels_at")
               if hasattr(RegionMap, n)}  # fmt: skip
    try:
        for name, method in methods.items():
            setattr(RegionMap, name, clocked(method))
        start = _now(device)
        enter("rest")
        call()
        leave()
        total = _now(device) - start
    finally:
        for name, method in methods.items():
            setattr(RegionMap, name, method)
        for hook in hooks:
            hook.remove()
    spent["rest"] += max(0.0, total - sum(spent.values()))
    return spent


# ----------------------------------------------------------------------------------------------------------- the demo


@dataclass
class Outcome:
    """What was measured about one form of the generator."""

    name: str
    seconds: float | None = None
    speed_up: float | None = None
    difference: float | None = None  # largest absolute difference of the output before tanh
    relative: float | None = None  # the same / largest absolute value of the plain output
    note: str = ""
    parts: dict[str, float] = field(default_factory=dict)


def _machine() -> str:
    try:
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = match.group(1).strip() if match else platform.machine()
    return f"{cpu}, {cores} cores, {torch.get_num_threads()} threads"


def _available_backends(device: torch.device) -> list[str]:
    found = []
    for name in ("native", "triton", "reference"):
        with backend.use_backend(name):
            if name == "reference" or backend.explain("region_norm", device)[0] == name:
                found.append(name)
    return found


def load_inputs(options: argparse.Namespace) -> tuple[Any, Any, str]:
    """Images (B, H, W, 3) uint8, labels (B, H, W) and a description of where they are from."""
    from .models.data import draw_batch, load_folder

    if options.data is None:
        images, labels = draw_batch("face", options.batch, options.size, seed=options.seed)
        return images, labels, "drawn by code"
    images, labels = load_folder(options.data, options.batch, options.size, num_classes=NUM_REGIONS)
    path = Path(options.data)
    return images, labels, f"{path.resolve().parent.name}/{path.resolve().name}"


def run(options: argparse.Namespace, inputs: tuple[Any, Any, str]) -> tuple[list[Outcome], dict[str, Any]]:
    """Build, check, time what `load_inputs` gave; returns the outcomes and everything the picture needs."""
    import numpy as np

    from .models.sean import Config, SEANGenerator
    from .region_map import RegionMap

    device = torch.device(options.device)
    if device.type == "cpu":
        keep_memory()  # for every form alike
    images, labels, source = inputs
    noise = "published" if device.type == "cpu" else "device"
    image = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).to(device)
    label_tensor = torch.from_numpy(np.ascontiguousarray(labels)).long().to(device)
    print(
        f"mixsyn-fast demo: SEAN generator, {options.size} x {options.size}, {NUM_REGIONS} regions, "
        f"ngf {options.ngf}, batch {options.batch}, float32, label maps {source}"
    )
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else _machine()
    print(f"{where}; torch {torch.__version__}")

    torch.manual_seed(options.seed)
    with progress("building the generator"):
        generator = SEANGenerator(Config(label_nc=NUM_REGIONS, ngf=options.ngf, image_size=options.size))
        randomise(generator, options.seed)
        generator.to(device).eval()
    with progress("loading the kernels (compiled at the first use on this machine)"):
        backend.explain("region_norm", device)
    parameters = sum(p.numel() for p in generator.parameters())
    print(f"{parameters / 1e6:.1f} million parameters, random but for the last layer, which is fitted to the images")

    def regions() -> RegionMap:
        return RegionMap(label_tensor, NUM_REGIONS)

    with progress("taking running statistics and fitting the last layer"):
        torch.manual_seed(options.seed)
        calibrate(generator, regions(), image, noise=noise)
        fit_last_layer(generator, image, regions(), image, noise=noise)
    plain = plain_copy(generator)

    def forward(model: Any) -> Tensor:
        """From raw labels to the output before tanh; the same noise every time."""
        torch.manual_seed(options.seed)
        return model.forward_features(regions(), image, noise=noise)

    def dense() -> Tensor:
        with dense_reference():
            return forward(plain)

    def ours(name: str) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with backend.use_backend(name):
                return forward(generator)

        return call

    outcomes = [Outcome("plain PyTorch, dense")]
    calls: dict[str, Callable[[], Tensor]] = {outcomes[0].name: dense}
    outputs: dict[str, Tensor] = {}
    with torch.no_grad():
        with progress("first run in plain PyTorch"):
            outputs[outcomes[0].name] = exact = dense()
        if options.compile:
            outcome = Outcome("torch.compile of it")
            outcomes.append(outcome)
            try:
                with progress("torch.compile of the dense form"), time_limit(options.compile_seconds):
                    compiled = _compile(plain, noise)
                    outputs[outcome.name] = compiled(regions(), image, options.seed)
                calls[outcome.name] = lambda: compiled(regions(), image, options.seed)
            except Exception as error:  # the demo goes on without it
                outcome.note = f"{type(error).__name__}: {str(error).splitlines()[0][:90] if str(error) else ''}"
        for name in _available_backends(device):
            outcome = Outcome(f"mixsyn_fast, {name}")
            outcomes.append(outcome)
            with progress(f"first run of {outcome.name}"):
                outputs[outcome.name] = ours(name)()
            calls[outcome.name] = ours(name)
        bare = without_norms(generator)
        floor = "without the norms (floor)"
        calls[floor] = lambda: forward(bare)
        outcomes.append(Outcome(floor, note="same network, region norms removed: another picture"))
        times = take_turns(calls, device, options.repeat)
        for outcome in outcomes:
            outcome.seconds = times.get(outcome.name)
            if outcome.seconds:
                outcome.speed_up = times[outcomes[0].name] / outcome.seconds
            if outcome.name in outputs:
                outcome.difference = float((outputs[outcome.name].double() - exact.double()).abs().max())
                outcome.relative = outcome.difference / float(exact.abs().max())
        fast = next(o for o in outcomes if o.name.startswith("mixsyn_fast"))
        with progress("timing the parts"):
            outcomes[0].parts = time_parts(plain, dense, device)
            for outcome in outcomes:
                if outcome.name.startswith("mixsyn_fast"):
                    outcome.parts = time_parts(generator, calls[outcome.name], device)
            outcomes[-1].parts = time_parts(bare, calls[floor], device)
    return outcomes, {
        "images": images,
        "labels": labels,
        "plain": torch.tanh(exact).cpu(),
        "fast": torch.tanh(outputs[fast.name]).cpu(),
        "fast_name": fast.name,
        "machine": where,
        "source": source,
    }


def _compile(plain: Any, noise: str) -> Callable[[Any, Tensor, int], Tensor]:
    """torch.compile of the dense form, drawing the same noise."""
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    inductor.fallback_random = True
    compiled = torch.compile(plain.forward_features, dynamic=False)

    def call(regions: Any, image: Tensor, seed: int) -> Tensor:
        with dense_reference():
            torch.manual_seed(seed)
            return compiled(regions, image, noise=noise)

    return call


def table(outcomes: Sequence[Outcome]) -> str:
    """The measured forms as text."""
    header = ["", "time", "speed-up", "largest difference", "relative"]
    rows = []
    for o in outcomes:
        rows.append([
            o.name,
            "-" if o.seconds is None else _seconds(o.seconds),
            "-" if o.speed_up is None else f"{o.speed_up:.2f} x",
            o.note if o.difference is None else f"{o.difference:.1e}",
            "" if o.relative is None else f"{o.relative:.1e}",
        ])  # fmt: skip
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(3)]
    lines = []
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:3], widths[1:], strict=True))]
        lines.append("  ".join([*cells, row[3].ljust(18) if len(row[3]) <= 18 else row[3], row[4]]).rstrip())
    return "\n".join(lines)


def parts_table(outcomes: Sequence[Outcome]) -> str:
    """Time per part as text."""
    measured = [o for o in outcomes if o.parts]
    width = max(len(o.name) for o in measured)
    lines = ["".ljust(width) + "".join(p.rjust(15) for p in PARTS)]
    lines += [o.name.ljust(width) + "".join(_seconds(o.parts[p]).rjust(15) for p in PARTS) for o in measured]
    return "\n".join(lines)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.0f} ms" if value >= 0.01 else f"{value * 1e3:.2f} ms"


# -------------------------------------------------------------------------------------------------------- the picture

_INK, _SOFT, _PAPER = (28, 30, 36), (105, 110, 120), (250, 250, 248)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    from PIL import ImageFont

    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError):  # an older pillow, or one without FreeType: one small built-in size
        return ImageFont.load_default()


def _picture(x: Tensor) -> Any:
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def _bars(draw: ImageDraw.ImageDraw, outcomes: Sequence[Outcome], left: int, top: int, width: int) -> None:
    """Stacked horizontal bars: seconds per part for every measured form."""
    measured = [o for o in outcomes if o.seconds is not None]
    longest = max(o.seconds or 0.0 for o in measured)
    name_width, height, gap = 230, 26, 12
    scale = (width - name_width - 190) / longest
    x = left + name_width
    for part in PARTS:
        draw.rectangle([x, top + 4, x + 14, top + 18], fill=_COLOURS[part])
        draw.text((x + 20, top), part, font=_font(16), fill=_INK)
        x += 34 + int(draw.textlength(part, font=_font(16))) + 18
    y = top + 36
    for o in measured:
        draw.text((left, y + 3), o.name, font=_font(17), fill=_INK)
        x0 = float(left + name_width)
        total = sum(o.parts.values())
        shares = [(p, o.parts[p] / total) for p in PARTS] if total else [("", 1.0)]
        for part, share in shares:
            x1 = x0 + share * (o.seconds or 0.0) * scale
            if x1 - x0 >= 0.5:
                draw.rectangle([x0, y, x1, y + height], fill=_COLOURS.get(part, (190, 193, 200)))
            x0 = x1
        text = _seconds(o.seconds or 0.0) + (f"   {o.speed_up:.1f} x" if o.speed_up and o is not measured[0] else "")
        draw.text((x0 + 10, y + 3), text, font=_font(17), fill=_INK)
        y += height + gap


def draw_sheet(outcomes: Sequence[Outcome], data: dict[str, Any], title: str) -> Image.Image:
    """One picture: label map, image, both outputs, difference, and the bar chart."""
    import numpy as np
    from PIL import Image, ImageDraw

    from .models.data import colorize

    shown = min(3, len(data["labels"]))
    panel, margin, gap = 256, 36, 14
    width = 2 * margin + 5 * panel + 4 * gap
    measured = [o for o in outcomes if o.seconds is not None]
    top = 128
    chart_top = top + shown * (panel + gap) + 46
    height = chart_top + 36 + len(measured) * 38 + 40
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, 24), title, font=_font(28), fill=_INK)
    fast = next(o for o in outcomes if o.name == data["fast_name"])
    gain = data.get("gain", 1.0)
    line = f"{data['machine']}  |  torch {torch.__version__}  |  label maps: {data['source']}"
    draw.text((margin, 64), line, font=_font(16), fill=_SOFT)
    names = ["label map", "input image", "plain PyTorch", "mixsyn_fast", f"difference x {gain:.0e}".replace("e+0", "e")]
    for i, name in enumerate(names):
        draw.text((margin + i * (panel + gap), top - 28), name, font=_font(18), fill=_INK)
    for row in range(shown):
        difference = (data["plain"][row] - data["fast"][row]).abs().mul(gain).clamp(0, 1)
        tiles = [
            colorize(data["labels"][row], NUM_REGIONS),
            data["images"][row],
            _picture(data["plain"][row]),
            _picture(data["fast"][row]),
            (difference * 255).byte().permute(1, 2, 0).numpy(),
        ]
        for i, tile in enumerate(tiles):
            square = Image.fromarray(np.ascontiguousarray(tile))
            if square.size != (panel, panel):
                kind = Image.Resampling.NEAREST if i == 0 or square.width < panel else Image.Resampling.LANCZOS
                square = square.resize((panel, panel), kind)
            sheet.paste(square, (margin + i * (panel + gap), top + row * (panel + gap)))
    relative = f"{fast.relative:.0e}" if fast.relative is not None else "-"
    draw.text(
        (margin, chart_top - 40),
        f"Time of one forward pass, label map included. Largest relative difference before tanh: {relative}",
        font=_font(18),
        fill=_INK,
    )
    _bars(draw, outcomes, margin, chart_top, width - 2 * margin)
    return sheet


def _gain(difference: float) -> float:
    """A power of ten that makes a difference of this size visible."""
    gain = 1.0
    while difference > 0 and difference * gain < 0.3 and gain < 1e12:
        gain *= 10
    return gain


# -------------------------------------------------------------------------------------------------------- command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `mixsyn-fast demo`."""
    parser.add_argument(
        "--data", metavar="DIR", help="folder with images/ and labels/ of faces (19 classes); else drawn by code"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/demo.png"), help="the picture (default outputs/demo.png)")
    parser.add_argument("--size", type=int, default=256, help="side of the images, a multiple of 32 (default 256)")
    parser.add_argument("--batch", type=int, default=1, help="images per run (default 1)")
    parser.add_argument("--ngf", type=int, default=64, help="width of the generator (default 64, as published)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, noise and drawn pictures")
    parser.add_argument("--repeat", type=int, default=5, help="timed runs of each form (default 5)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda[:n] (default cpu)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--compile-seconds", type=float, default=300.0, help="give torch.compile this long (default 300)")


def check(options: argparse.Namespace) -> None:
    """Raise ValueError, naming the option, for what cannot be done."""
    if options.size < 32 or options.size % 32:
        raise ValueError(f"--size: expected a positive multiple of 32, got {options.size}")
    for name in ("batch", "ngf", "repeat"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}: expected at least 1, got {getattr(options, name)}")
    if options.seed < 0:
        raise ValueError(f"--seed: expected a non-negative integer, got {options.seed}")
    try:
        device = torch.device(options.device)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu or cuda[:n], got {options.device!r}")
    if device is not None and device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device: {options.device} asked for, but torch sees no GPU")
    if options.out.suffix.lower() != ".png":
        raise ValueError(f"--out: expected a file name ending in .png, got {options.out}")
    if options.data is not None:
        from .models.data import list_pairs

        try:
            list_pairs(options.data)
        except OSError as error:
            raise ValueError(f"--data: {error}") from None


def main(options: argparse.Namespace) -> int:
    """Run `mixsyn-fast demo`; return the exit status (0: all forms agree).

    Raises:
        ImportError: pillow is missing.
        ValueError: an option or a file of the data is wrong.
    """
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise ImportError("drawing the picture needs pillow: pip install 'mixsyn_fast[models]'") from None
    check(options)
    try:
        inputs = load_inputs(options)
    except ValueError as error:
        raise ValueError(f"--data: {error}") from None
    outcomes, data = run(options, inputs)
    print("\n" + table(outcomes))
    print("\nTime per part (one run with clocks inside):\n" + parts_table(outcomes))
    spread = (data["plain"] - data["fast"]).abs().flatten()[::7].double().quantile(0.95)
    data["gain"] = _gain(float(spread))
    title = f"SEAN generator, {options.size} x {options.size}, batch {options.batch}, {NUM_REGIONS} regions, float32"
    sheet = draw_sheet(outcomes, data, title)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(options.out)
    print(f"\nwritten: {options.out}")
    worst = max(o.relative for o in outcomes if o.name.startswith("mixsyn_fast") and o.relative is not None)
    if worst > 1e-4:
        print(f"the outputs differ: relative difference {worst:.1e}", file=sys.stderr)
        return 1
    return 0
