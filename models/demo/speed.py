"""Times of a SEAN generator with random weights, in plain PyTorch and with mixsyn_fast, for the demo."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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


def time_parts(generator: nn.Module, call: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, dict[str, float]]:
    """Split one call into PARTS, in seconds, which add up to its time: hooks around modules, a clock around label analysis.

    Returns:
        The call's output, and the parts.
    """
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
        output = call()
        leave()
        total = now(device) - start
    finally:
        for name, method in methods.items():
            setattr(RegionMap, name, method)
        for hook in hooks:
            hook.remove()
    spent["rest"] += max(0.0, total - sum(spent.values()))
    return output, spent


# ----------------------------------------------------------------------------------------------------------- the speed


@dataclass
class Outcome:
    """What was measured about one form of a model."""

    name: str
    seconds: float | None = None  # median
    repeated: int = 0  # timed runs after the first; 0: `seconds` are those of the first
    speed_up: float | None = None
    difference: float | None = None  # largest absolute difference of the output (SEAN: before tanh)
    relative: float | None = None  # the same / largest absolute value of the plain output
    note: str = ""
    parts: dict[str, float] = field(default_factory=dict)  # of the run with the median time


@dataclass
class Form:
    """One form of a generator, and its runs."""

    call: Callable[[], Tensor]
    model: nn.Module | None  # whose parts are told apart; None: those of compiled code cannot be
    runs: list[tuple[float, dict[str, float]]] = field(default_factory=list)

    def run(self, device: torch.device) -> Tensor:
        """Time one run and its parts at once; return its output."""
        if self.model is not None and device.type == "cpu":
            output, parts = time_parts(self.model, self.call, device)
            self.runs.append((sum(parts.values()), parts))
            return output
        start = now(device)
        output = self.call()
        self.runs.append((now(device) - start, {}))
        return output

    def report(self, outcome: Outcome, device: torch.device) -> None:
        """Write the run with the median time into an outcome. Clocks within slow a GPU: there, the parts of one more run."""
        runs = sorted(self.runs[1:] or self.runs, key=lambda run: run[0])
        outcome.repeated = len(self.runs) - 1
        outcome.seconds, outcome.parts = runs[len(runs) // 2]
        if self.model is not None and device.type != "cpu":
            outcome.parts = time_parts(self.model, self.call, device)[1]


def _backends(device: torch.device) -> list[str]:
    """Backends with kernels of ours for this device; the reference where there is none."""
    found = []
    for name in ("native", "triton"):
        with backend.use_backend(name):
            if backend.explain("region_norm", device)[0] == name:
                found.append(name)
    return found or ["reference"]


def measure_sean(
    images: np.ndarray,
    labels: np.ndarray,
    num_regions: int,
    *,
    ngf: int = 64,
    seed: int = 0,
    rounds: Iterable[int],
    device: torch.device | str = "cpu",
    compile_seconds: float = 0.0,
) -> list[Outcome]:
    """Build a SEAN generator, and measure its forms: difference from plain PyTorch, time, parts.

    The output of the first run of every form is what is compared.

    Args:
        images: (B, S, S, 3) uint8.
        labels: (B, S, S) integers in [0, num_regions), or -1.
        num_regions: K.
        ngf: width; 64 as published.
        seed: of weights and noise.
        rounds: every form is timed once in each of them (`Budget.rounds`); they take turns, so that noise hits all alike.
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
    forms = {outcomes[0].name: Form(dense, plain)}
    with torch.no_grad():
        if compile_seconds > 0:
            outcome = Outcome("torch.compile of it")
            outcomes.append(outcome)
            try:
                with progress("torch.compile of the dense form"), time_limit(compile_seconds):
                    compiled = _compile(plain, noise)
                    compiled(regions(), image, seed)
                forms[outcome.name] = Form(lambda: compiled(regions(), image, seed), None)
            except Exception as error:  # the demo goes on without it
                outcome.note = f"{type(error).__name__}: {str(error).splitlines()[0][:90] if str(error) else ''}"
        for name in _backends(device):
            outcomes.append(Outcome(f"mixsyn_fast, {name}"))
            forms[outcomes[-1].name] = Form(ours(name), generator)
        bare = without_norms(generator)
        floor = Outcome("without the norms (floor)", note="same network, region norms removed: another picture")
        outcomes.append(floor)
        forms[floor.name] = Form(lambda: forward(bare), bare)
        exact: Tensor | None = None
        for turn in rounds:
            for outcome in outcomes:
                if (form := forms.get(outcome.name)) is None:
                    continue
                with progress(f"{outcome.name}: {f'repetition {turn}' if turn else 'first run'}"):
                    output = form.run(device)
                exact = output if exact is None else exact
                if turn == 0 and outcome is not floor:
                    outcome.difference = float((output.double() - exact.double()).abs().max())
                    outcome.relative = outcome.difference / float(exact.abs().max())
                del output
        for outcome in outcomes:
            if outcome.name in forms:
                forms[outcome.name].report(outcome, device)
    for outcome in outcomes:
        if outcome.seconds and outcomes[0].seconds:
            outcome.speed_up = outcomes[0].seconds / outcome.seconds
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
    header = ["", "runs", "time", "speed-up", "largest difference", "relative"]
    rows = []
    for o in outcomes:
        rows.append([
            o.name,
            "-" if o.seconds is None else str(o.repeated or "first"),
            "-" if o.seconds is None else in_words(o.seconds),
            "-" if o.speed_up is None else f"{o.speed_up:.2f} x",
            o.note if o.difference is None else f"{o.difference:.1e}",
            "" if o.relative is None else f"{o.relative:.1e}",
        ])  # fmt: skip
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(4)]
    lines = []
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:4], widths[1:], strict=True))]
        lines.append("  ".join([*cells, row[4].ljust(18) if len(row[4]) <= 18 else row[4], row[5]]).rstrip())
    return "\n".join(lines)


def parts_table(outcomes: Sequence[Outcome]) -> str:
    """Time per part of the run with the median time, as text."""
    measured = [o for o in outcomes if o.parts]
    width = max(len(o.name) for o in measured)
    parts = list(measured[0].parts)
    lines = ["".ljust(width) + "".join(p.rjust(15) for p in parts)]
    lines += [o.name.ljust(width) + "".join(in_words(o.parts[p]).rjust(15) for p in parts) for o in measured]
    return "\n".join(lines)


def in_words(value: float) -> str:
    """Return seconds as "1.25 s", "12 ms" or "1.25 ms"."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.0f} ms" if value >= 0.01 else f"{value * 1e3:.2f} ms"
