"""Times of a SEAN generator with random weights, in plain PyTorch and with mixsyn_fast, for the demo."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mixsyn_fast import backend
from mixsyn_fast.machine import now, time_limit
from mixsyn_fast.progress import progress

from ..plain import calibrate, dense_reference, plain_copy, randomise, without_norms

if TYPE_CHECKING:
    import numpy as np

    from mixsyn_fast.region_map import RegionMap

PARTS = ("label map", "style encoder", "region norms", "convolutions", "rest")


# ------------------------------------------------------------------------------------------------ time and its parts


def take_turns(calls: dict[str, Callable[[], Any]], device: torch.device, repeat: int) -> dict[str, float]:
    """Median seconds of each call after one warm-up; the calls take turns, so that noise hits all alike."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeat + 1):
        for name, call in calls.items():
            with progress(f"running {name} ({'warm-up' if turn == 0 else f'{turn} of {repeat}'})"):
                start = now(device)
                call()
                seconds = now(device) - start
            if turn > 0:
                samples[name].append(seconds)
    return {name: statistics.median(values) for name, values in samples.items()}


def time_parts(generator: nn.Module, call: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Split one call into PARTS, in seconds: hooks around modules, and a clock around the label analysis."""
    from mixsyn_fast.layers import CLADENorm, SEANNorm, SPADENorm
    from mixsyn_fast.region_map import RegionMap

    spent = dict.fromkeys(PARTS, 0.0)
    open_parts: list[tuple[str, float, float]] = []  # part, start, time that inner parts took
    hooks = []

    def enter(part: str) -> None:
        open_parts.append((part, now(device), 0.0))

    def leave() -> None:
        part, start, inner = open_parts.pop()
        duration = now(device) - start
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
        start = now(device)
        enter("rest")
        call()
        leave()
        total = now(device) - start
    finally:
        for name, method in methods.items():
            setattr(RegionMap, name, method)
        for hook in hooks:
            hook.remove()
    spent["rest"] += max(0.0, total - sum(spent.values()))
    return spent


# ----------------------------------------------------------------------------------------------------------- the speed


@dataclass
class Outcome:
    """What was measured about one form of a model."""

    name: str
    seconds: float | None = None
    speed_up: float | None = None
    difference: float | None = None  # largest absolute difference of the output (SEAN: before tanh)
    relative: float | None = None  # the same / largest absolute value of the plain output
    note: str = ""
    parts: dict[str, float] = field(default_factory=dict)


def _available_backends(device: torch.device) -> list[str]:
    found = []
    for name in ("native", "triton", "reference"):
        with backend.use_backend(name):
            if name == "reference" or backend.explain("region_norm", device)[0] == name:
                found.append(name)
    return found


def measure_sean(
    images: np.ndarray,
    labels: np.ndarray,
    num_regions: int,
    *,
    ngf: int = 64,
    seed: int = 0,
    repeat: int = 5,
    device: torch.device | str = "cpu",
    compile_seconds: float = 0.0,
) -> list[Outcome]:
    """Build a SEAN generator, and measure its forms: difference from plain PyTorch, time, parts.

    Args:
        images: (B, S, S, 3) uint8.
        labels: (B, S, S) integers in [0, num_regions), or -1.
        num_regions: K.
        ngf: width; 64 as published.
        seed: of weights and noise.
        repeat: timed runs of each form.
        device: where to run.
        compile_seconds: give torch.compile this long; 0: leave it out.
    """
    import numpy as np

    from mixsyn_fast.region_map import RegionMap

    from ..sean import Config, SEANGenerator

    device = torch.device(device)
    noise = "published" if device.type == "cpu" else "device"
    image = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).to(device)
    label_tensor = torch.from_numpy(np.array(labels)).long().to(device)
    torch.manual_seed(seed)
    with progress("building the generator"):
        generator = SEANGenerator(Config(label_nc=num_regions, ngf=ngf, image_size=labels.shape[1]))
        randomise(generator, seed)
        generator.to(device).eval()
    with progress("loading the kernels (compiled at the first use on this machine)"):
        backend.explain("region_norm", device)

    def regions() -> RegionMap:
        return RegionMap(label_tensor, num_regions, ignore_index=-1)

    with progress("taking running statistics"):
        torch.manual_seed(seed)
        calibrate(generator, regions(), image, noise=noise)
    plain = plain_copy(generator)

    def forward(model: Any) -> Tensor:
        """From raw labels to the output before tanh; the same noise every time."""
        torch.manual_seed(seed)
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
        if compile_seconds > 0:
            outcome = Outcome("torch.compile of it")
            outcomes.append(outcome)
            try:
                with progress("torch.compile of the dense form"), time_limit(compile_seconds):
                    compiled = _compile(plain, noise)
                    outputs[outcome.name] = compiled(regions(), image, seed)
                calls[outcome.name] = lambda: compiled(regions(), image, seed)
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
        times = take_turns(calls, device, repeat)
        for outcome in outcomes:
            outcome.seconds = times.get(outcome.name)
            if outcome.seconds:
                outcome.speed_up = times[outcomes[0].name] / outcome.seconds
            if outcome.name in outputs:
                outcome.difference = float((outputs[outcome.name].double() - exact.double()).abs().max())
                outcome.relative = outcome.difference / float(exact.abs().max())
        with progress("timing the parts"):
            for outcome in outcomes:
                if outcome.name in calls and not outcome.name.startswith("torch.compile"):
                    timed = {outcomes[0].name: plain, floor: bare}.get(outcome.name, generator)
                    outcome.parts = time_parts(timed, calls[outcome.name], device)
    return outcomes


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
            "-" if o.seconds is None else in_words(o.seconds),
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
    parts = list(measured[0].parts)
    lines = ["".ljust(width) + "".join(p.rjust(15) for p in parts)]
    lines += [o.name.ljust(width) + "".join(in_words(o.parts[p]).rjust(15) for p in parts) for o in measured]
    return "\n".join(lines)


def in_words(value: float) -> str:
    """Return seconds as "1.25 s", "12 ms" or "1.25 ms"."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.0f} ms" if value >= 0.01 else f"{value * 1e3:.2f} ms"
