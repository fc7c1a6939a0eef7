r"""Augmentation of what a discriminator sees, with a probability that follows its overfitting.

Karras et al.: Training Generative Adversarial Networks with Limited Data (StyleGAN2-ADA, NeurIPS 2020), Section 3 and
Appendix B, written from the description. Real and generated images go through the same random transforms, each dealt to each
image with probability p; below p = 0.8 or so the generator does not learn to draw the transforms. p moves so that

.. math::

    r_t = E[\mathrm{sign}(D(\mathrm{real}))]

stays at a target: 0 says that the discriminator does not tell real images from generated ones, 1 that it knows them by
heart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class AugmentConfig:
    """Which transforms are dealt, and how their probability moves."""

    blit: bool = True  # whole pixels: mirror left and right, move by up to an eighth of the side
    geom: bool = True  # scale, rotate, stretch, move by fractions of a pixel: one resampling
    color: bool = True  # brightness, contrast, luma flip, hue, saturation: one matrix
    quarter_turns: bool = False  # among the blits; not for pictures that have an up
    target: float = 0.6  # the mean sign of D(real) that p is steered to
    speed: int = 100_000  # real images in which p can go from 0 to 1; 500,000 in the paper, whose runs see 25 million
    interval: int = 4  # steps between two moves of p

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not -1 < self.target < 1:
            raise ValueError(f"target: expected a number between -1 and 1, got {self.target}")
        for name in ("speed", "interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


class Moves(NamedTuple):
    """Where the pixels of each image go, in this order: (B,) each; zeros leave everything where it is."""

    flip: Tensor  # 1: left and right change places
    turns: Tensor  # quarter turns, clockwise
    shift_x: Tensor  # whole pixels to the right
    shift_y: Tensor  # whole pixels down
    scale: Tensor  # log2 of the factor
    before: Tensor  # rotation before the stretching, clockwise, radians
    stretch: Tensor  # log2 of the factor of the width; the height is divided by it
    after: Tensor  # rotation after it
    offset_x: Tensor  # pixels to the right, with fractions
    offset_y: Tensor  # pixels down


class Colors(NamedTuple):
    """What becomes of the colours of each image, in this order: (B,) each; zeros leave them."""

    brightness: Tensor  # added to each channel
    contrast: Tensor  # log2 of the factor
    luma: Tensor  # 1: light becomes dark and dark light, with the same hue
    hue: Tensor  # rotation about the grey axis, radians: a third of a turn moves red to green, green to blue
    saturation: Tensor  # log2 of the factor of what is not grey


# Appendix B: standard deviation, half-width, number of choices of the values above; moves are in shares of the side
_NORMAL = {"scale": 0.2, "stretch": 0.2, "offset_x": 0.125, "offset_y": 0.125}
_NORMAL |= {"brightness": 0.2, "contrast": 0.5, "saturation": 1.0}
_UNIFORM = {"shift_x": 0.125, "shift_y": 0.125, "before": math.pi, "after": math.pi, "hue": math.pi}
_CHOICES = {"flip": 2, "turns": 4, "luma": 2}
# one decision an image and transform; values with one decision in common stand together
_GROUPS = {
    "blit": (("flip",), ("turns",), ("shift_x", "shift_y")),
    "geom": (("scale",), ("before",), ("stretch",), ("after",), ("offset_x", "offset_y")),
    "color": (("brightness",), ("contrast",), ("luma",), ("hue",), ("saturation",)),
}
_DECISIONS = sum(len(group) for group in _GROUPS.values())


class Dealt(NamedTuple):
    """The transforms of a batch."""

    moves: Moves
    colors: Colors
    blit: Tensor  # (B,) bool: some transform of whole pixels was dealt to the image
    geom: Tensor  # (B,) bool: some transform that resamples it
    color: Tensor  # (B,) bool


def deal(images: Tensor, p: float | Tensor, config: AugmentConfig, generator: torch.Generator | None = None) -> Dealt:
    """Draw who gets which transform, and how much of it; the same number of random numbers whatever p and config are.

    Args:
        images: (B, 3, H, W), for their size, dtype and device.
        p: probability of each transform, a number or a tensor of no dimension.
        config: groups that are off deal nothing.
        generator: of the images' device; None takes torch's own.
    """
    count, (height, width) = len(images), images.shape[2:]
    like: dict[str, Any] = {"device": images.device, "dtype": images.dtype, "generator": generator}
    uniform = iter(torch.rand(_DECISIONS + len(_UNIFORM) + len(_CHOICES), count, **like))
    normal = iter(torch.randn(len(_NORMAL), count, **like))
    values = {name: (2 * next(uniform) - 1) * half for name, half in _UNIFORM.items()}
    values |= {name: (next(uniform) * choices).floor() for name, choices in _CHOICES.items()}
    values |= {name: next(normal) * spread for name, spread in _NORMAL.items()}
    for name, side in (("shift_x", width), ("shift_y", height), ("offset_x", width), ("offset_y", height)):
        values[name] = values[name] * side
    touched = {}
    for group, transforms in _GROUPS.items():
        touched[group] = torch.zeros(count, dtype=torch.bool, device=images.device)
        for names in transforms:
            # the two rotations together are as frequent as any other transform
            gate = next(uniform) < (1 - (1 - p) ** 0.5 if names[0] in ("before", "after") else p)
            if not getattr(config, group) or (names[0] == "turns" and not config.quarter_turns):
                gate = torch.zeros_like(gate)
            touched[group] |= gate
            for name in names:
                value = values[name].round() if group == "blit" else values[name]
                values[name] = torch.where(gate, value, 0.0)
    moves = Moves(*(values[name] for name in Moves._fields))
    return Dealt(moves, Colors(*(values[name] for name in Colors._fields)), **touched)


def _rotation(cosine: Tensor, sine: Tensor) -> Tensor:
    return torch.stack([cosine, -sine, sine, cosine], -1).view(-1, 2, 2)


def _stretched(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([x, y], -1))


def sources(moves: Moves) -> Tensor:
    """Return where a pixel of the result comes from: (B, 2, 3), all moves in one matrix.

    It takes (x, y, 1), pixels right of and below the middle of the image, to the place in the source, in pixels as well:
    the inverse of the moves in their order. For whole-pixel moves alone every entry is a whole number, exactly.
    """
    quarters = moves.turns * (math.pi / 2)
    cosine, sine = quarters.cos().round(), quarters.sin().round()
    whole = _stretched(1 - 2 * moves.flip, torch.ones_like(moves.flip)) @ _rotation(cosine, -sine)
    linear = whole @ _stretched(torch.exp2(-moves.scale), torch.exp2(-moves.scale))
    linear = linear @ _rotation(moves.before.cos(), -moves.before.sin())
    linear = linear @ _stretched(torch.exp2(-moves.stretch), torch.exp2(moves.stretch))
    linear = linear @ _rotation(moves.after.cos(), -moves.after.sin())
    shift = torch.stack([moves.shift_x, moves.shift_y], -1).unsqueeze(-1)
    offset = torch.stack([moves.offset_x, moves.offset_y], -1).unsqueeze(-1)
    return torch.cat([linear, -(linear @ offset) - whole @ shift], -1)


def _centred(size: int, like: Tensor, step: float = 1.0, margin: int = 0) -> Tensor:
    """Positions of `size` pixels from their middle; with a step, as many finer ones, and `margin` more on each side."""
    count = round(size / step) + 2 * margin
    return (torch.arange(count, device=like.device, dtype=like.dtype) - (count - 1) / 2) * step


def move_pixels(images: Tensor, source: Tensor) -> Tensor:
    """Move whole pixels: every pixel of the result is one of the image, bit for bit; what is outside is mirrored.

    Args:
        images: (B, 3, H, W), H and W at least 2.
        source: (B, 2, 3) of whole-pixel moves, see `sources`; odd quarter turns want H = W.
    """
    height, width = images.shape[2:]
    x, y = _centred(width, source), _centred(height, source)[:, None]

    def place(row: int, size: int) -> Tensor:
        a, b, c = source[:, row, :, None, None].unbind(1)
        found = (a * x + b * y + (c + (size - 1) / 2)).round().long() % (2 * size - 2)  # mirrored at the outermost pixels
        return torch.where(found < size, found, 2 * size - 2 - found)

    index = (place(1, height) * width + place(0, width)).flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, index).view_as(images)


_MODE = (0, 2, True)  # torch's numbers for bilinear, reflection, align_corners


class _Sample(torch.autograd.Function):
    """grid_sample with respect to the images, as often differentiable as one likes: torch's own gradient has none."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.size = images.shape
        return torch.grid_sampler_2d(images, grid, *_MODE)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Spread.apply(grad, ctx.saved_tensors[0], ctx.size), None


class _Spread(torch.autograd.Function):
    """The transposed map of _Sample."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, grid: Tensor, size: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        # the images' values matter to the gradient of the grid alone
        spread: Tensor = torch.ops.aten.grid_sampler_2d_backward(grad, grad.new_zeros(size), grid, *_MODE, [True, False])[0]
        return spread

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Sample.apply(grad, ctx.saved_tensors[0]), None, None


def resample(images: Tensor, source: Tensor) -> Tensor:
    """Move pixels by any matrix: one sampling, mirrored outside.

    Bilinear, on a grid twice as fine as the image, and from there by the filter [-1, 9, 9, -1] / 16 in each direction, which
    is flat up to half the highest frequency and 0 at twice that: the finest stripes become grey, not coarse stripes, in a
    copy half as large. The paper makes the source finer as well, with a wavelet of six taps; that keeps more of the finest
    detail and costs padding, two filters of twelve taps and a sampling of the same size.

    Args:
        images: (B, 3, H, W), H and W at least 2; differentiable, twice as well.
        source: (B, 2, 3), see `sources`; no gradient goes to it.
    """
    height, width = images.shape[2:]
    x, y = _centred(width, source, 0.5, 1), _centred(height, source, 0.5, 1)
    grid = source.new_empty(len(source), len(y), len(x), 2)
    for row, size in ((0, width), (1, height)):
        # torch's positions: -1 and 1 are the middles of the outermost pixels
        a, b, c = (source[:, row, :, None, None] / ((size - 1) / 2)).unbind(1)
        torch.add(a * x, b * y[:, None] + c, out=grid[..., row])
    fine: Tensor = _Sample.apply(images, grid)
    return _halved(_halved(fine, 2), 3)


def _halved(fine: Tensor, dim: int) -> Tensor:
    """Filter one direction by [-1, 9, 9, -1] / 16 and keep every other value."""
    even, odd = fine.unflatten(dim, (-1, 2)).unbind(dim + 1)
    count = even.shape[dim] - 1
    near: Tensor = odd.narrow(dim, 0, count) + even.narrow(dim, 1, count)
    far: Tensor = even.narrow(dim, 0, count) + odd.narrow(dim, 1, count)
    return near * (9 / 16) - far * (1 / 16)


def color_matrix(colors: Colors) -> Tensor:
    """Return (B, 3, 4): all changes of colour in one matrix on (r, g, b, 1).

    Luma flip, hue and saturation keep the grey axis v and the plane across it apart, so their product has a closed form:
    c ((1 - 2 l) P + s (cos h Q + sin h K)), with P = v v^T, Q = 1 - P, and K the cross product with v.
    """
    eye = torch.eye(3, device=colors.luma.device, dtype=colors.luma.dtype)
    grey = torch.full_like(eye, 1 / 3)
    turn = (eye.roll(1, 0) - eye.roll(-1, 0)) / math.sqrt(3)
    contrast, saturation = torch.exp2(colors.contrast), torch.exp2(colors.saturation)
    along = (contrast * (1 - 2 * colors.luma))[:, None, None]
    beside = contrast * saturation
    linear = along * grey + (beside * colors.hue.cos())[:, None, None] * (eye - grey)
    linear = linear + (beside * colors.hue.sin())[:, None, None] * turn
    return torch.cat([linear, (along * colors.brightness[:, None, None]).expand(-1, 3, 1)], -1)


def recolor(images: Tensor, matrix: Tensor) -> Tensor:
    """Apply a matrix (B, 3, 4) to (r, g, b, 1) of every pixel of (B, 3, H, W)."""
    return torch.baddbmm(matrix[:, :, 3:], matrix[:, :, :3], images.flatten(2)).view_as(images)


def _where(dealt: Tensor, images: Tensor, change: Callable[[Tensor, Tensor], Tensor], matrix: Tensor) -> Tensor:
    """Change the images that got something; the others are the given bits."""
    if images.device.type != "cpu":  # to know whom would make the host wait for the device
        return torch.where(dealt[:, None, None, None], change(images, matrix), images)
    rows = dealt.nonzero()[:, 0]
    if len(rows) == 0:
        return images
    if len(rows) == len(images):
        return change(images, matrix)
    return images.index_copy(0, rows, change(images[rows], matrix[rows]))


class Augmentation(nn.Module):
    """Random transforms for a discriminator's images; no parameters and no state."""

    def __init__(self, config: AugmentConfig | None = None) -> None:
        """`config`: the groups that are on; the paper's, without quarter turns, by default."""
        super().__init__()
        self.config = config or AugmentConfig()

    def forward(self, images: Tensor, p: float | Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the images with every transform dealt to every image with probability `p`.

        Outside the image it is mirrored (the outermost pixels stand once). An image to which nothing was dealt comes back
        bit for bit; one with transforms of whole pixels alone is moved, not resampled. Differentiable in the images, twice
        as well. Results are not clamped. Outside autocast; float16 and bfloat16 are computed in float32.

        Args:
            images: (B, 3, H, W) in about [-1, 1], H and W at least 2.
            p: 0 to 1, a number or a tensor of no dimension (which is not read on the host when it is on a GPU).
            generator: on the images' device; None takes torch's own. One draw a call, whatever is dealt; none for p = 0.0.

        Raises:
            TypeError: images that are no floating-point tensor.
            ValueError: another shape; p outside [0, 1] or with dimensions; quarter turns of images that are not square.
        """
        if not isinstance(images, Tensor) or not images.is_floating_point():
            raise TypeError(
                f"images: expected a floating-point tensor, got {getattr(images, 'dtype', type(images).__name__)}"
            )
        if images.dim() != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 2:
            raise ValueError(f"images: expected (B, 3, H, W) with H and W at least 2, got {tuple(images.shape)}")
        if self.config.blit and self.config.quarter_turns and images.shape[2] != images.shape[3]:
            raise ValueError(f"images: expected square ones for quarter turns, got {tuple(images.shape[2:])}")
        if isinstance(p, Tensor) and p.dim() != 0:
            raise ValueError(f"p: expected a number or a tensor of no dimension, got shape {tuple(p.shape)}")
        if not isinstance(p, Tensor) or p.device.type == "cpu":
            p = float(p)
            if not 0 <= p <= 1:
                raise ValueError(f"p: expected 0 to 1, got {p}")
            if p == 0:
                return images
        with torch.autocast(images.device.type, enabled=False):
            wide = images if images.dtype.itemsize >= 4 else images.float()
            with torch.no_grad():
                dealt = deal(wide, p, self.config, generator)
                source = sources(dealt.moves)
                matrix = color_matrix(dealt.colors)
            result = wide
            if self.config.blit:
                result = _where(dealt.blit & ~dealt.geom, result, move_pixels, source)
            if self.config.geom:
                result = _where(dealt.geom, result, resample, source)
            if self.config.color:
                result = _where(dealt.color, result, recolor, matrix)
        return result.to(images.dtype)


class AdaptiveProbability:
    """p, moved so that the mean sign of D(real) stays at the target (Section 3, r_t).

    Every step: `observe` the logits of the real images as the discriminator saw them (augmented), then `update`. Every
    `interval`-th update moves p by the images observed since the last move over `config.speed`: up where the signs
    say overfitting, else down.
    """

    def __init__(self, config: AugmentConfig | None = None, p: float = 0.0) -> None:
        """`config`: target, speed and interval; `p`: where it starts, 0 to 1 (ValueError)."""
        if not 0 <= p <= 1:
            raise ValueError(f"p: expected 0 to 1, got {p}")
        self.config = config or AugmentConfig()
        self.p = float(p)
        self._steps = 0
        self._sums: Tensor | None = None  # signs, logits, images since p last moved, on the logits' device

    @torch.no_grad()
    def observe(self, real_logits: Tensor, reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        """Take in logits of real images: added up on their device, so the host waits for nothing.

        Args:
            real_logits: (B, ...).
            reduce: with several processes, takes the sums of this one, (3,) float32 on the logits' device (signs, logits,
                images: whole numbers, exact), and returns those over all. So the state is the same in every process.
        """
        if real_logits.dim() < 1:
            raise ValueError("real_logits: expected the batch first, (B, ...), got a tensor of no dimension")
        counts = torch.tensor([0.0, real_logits.numel(), len(real_logits)], device=real_logits.device)
        counts[0] = real_logits.sign().sum(dtype=torch.float32)
        sums = reduce(counts) if reduce else counts
        self._sums = sums if self._sums is None else self._sums.to(sums.device) + sums

    def update(self) -> float:
        """Count a step, move p if it is due, and return it."""
        self._steps += 1
        if self._steps % self.config.interval:
            return self.p
        signs, logits, images = (0.0, 0.0, 0.0) if self._sums is None else self._sums.tolist()
        self._sums = None
        if logits:
            change = images / self.config.speed
            sign = signs / logits
            moved = self.p + change * ((sign > self.config.target) - (sign < self.config.target))
            self.p = min(max(moved, 0.0), 1.0)
        return self.p

    def state(self) -> dict[str, Any]:
        """Return p and what was counted since it last moved, as JSON; `load_state` goes on from there bit for bit."""
        return {"p": self.p, "steps": self._steps, "sums": None if self._sums is None else self._sums.tolist()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        self.p, self._steps = float(state["p"]), int(state["steps"])
        self._sums = None if state["sums"] is None else torch.tensor(state["sums"])
