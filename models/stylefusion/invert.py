"""The code of a given photo, found by optimisation: slow and plain, so that people can bring their own pictures (Sec. 6.1).

    mixsyn-fast stylefusion invert --sheet sheet.png                           images of the model itself, found again
    mixsyn-fast stylefusion invert --image me.png --space w+ --steps 500 --sheet sheet.png

Minimised is LPIPS (weights as `mixsyn-fast evaluate` finds them) plus the mean squared difference, over w, one w a layer
(w+), or s. A photo is cropped to the square in its middle and scaled to the model's size. What comes out is a file of codes
for `fuse`, `pose` and `edit`. W keeps closest to what the generator was trained on and edits best; W+ and S come closer to
the photo.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mixsyn_fast.progress import progress
from mixsyn_fast.writing import write_json

from ..metrics.lpips import LPIPS
from ..pictures.files import read_image
from ..pictures.options import (
    UNSEEN,
    ModelOptions,
    check_outputs,
    check_png,
    device_of,
    open_model,
    pictures_at,
    write_image,
    write_sheet,
)
from ..pictures.picture import Picture, fit
from ..settings import at_least
from ..sheets import contact_sheet, to_uint8
from ..stylegan2 import Generator
from .model import StyleFusion
from .pictures import cell, save_codes

Space = Literal["w", "w+", "s"]


@dataclass(frozen=True, eq=False)
class Inverted:
    """The code of a picture."""

    s: Tensor
    """(S) float32."""
    image: np.ndarray
    """(H, W, 3) uint8, that the generator makes of it."""
    losses: list[float]
    """Of every step; the code is that of the least."""
    squared: float
    """Mean squared difference to the picture at the end, values in [-1, 1]."""


def invert(
    generator: Generator,
    image: np.ndarray,
    *,
    space: Space = "w",
    steps: int = 300,
    lr: float = 0.05,
    squared: float = 1.0,
    lpips: LPIPS | None = None,
    advance: Callable[[int], None] | None = None,
) -> Inverted:
    """Find the code whose image is closest to a picture, by Adam from the mean of w on.

    Args:
        generator: fixed.
        image: (H, W, 3) uint8 of the generator's size.
        space: what is optimised: one w, one w a layer, or s.
        steps: of Adam.
        lr: learning rate, which rises over the first twentieth of the steps and falls like a cosine over the last quarter.
        squared: weight of the mean squared difference.
        lpips: the perceptual distance; None: the squared difference alone.
        advance: called with 1 after every step.

    Raises:
        ValueError: a picture of another size, numbers out of range, or nothing to minimise.
    """
    size = generator.config.size
    if image.shape != (size, size, 3) or image.dtype != np.uint8:
        raise ValueError(f"image: expected ({size}, {size}, 3) uint8, got {image.shape} {image.dtype}")
    if steps < 1 or not lr > 0 or squared < 0:
        raise ValueError(f"steps, lr, squared: expected at least 1, above 0, 0 or more, got {steps}, {lr}, {squared}")
    if lpips is None and squared == 0:
        raise ValueError("squared: expected a weight above 0 where there is no LPIPS, got 0")
    if space not in ("w", "w+", "s"):
        raise ValueError(f"space: expected w, w+ or s, got {space!r}")
    device = generator.w_mean.device
    target = torch.from_numpy(image.copy()).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1
    wanted = lpips.features(target) if lpips is not None else []
    start = {
        "w": generator.w_mean[None],
        "w+": generator.w_mean.expand(1, generator.num_ws, -1),
        "s": generator.styles(generator.w_mean[None]),
    }[space]
    code = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([code], lr=lr, betas=(0.9, 0.99))
    best: tuple[float, Tensor] = (math.inf, code.detach().clone())
    losses: list[float] = []
    for step in range(steps):
        t = (step + 1) / steps
        factor = min(1.0, t * 20) * (0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - t) / 0.25 + 1 / steps)))
        optimizer.param_groups[0]["lr"] = lr * factor
        with torch.enable_grad():
            made = generator.synthesis(code if space == "s" else generator.styles(code))
            loss = squared * F.mse_loss(made, target) if squared else made.new_zeros(())
            if lpips is not None:
                apart = [(a - b).square() for a, b in zip(lpips.unit_features(made), wanted, strict=True)]
                loss = loss + sum(m.mean((1, 2, 3)).sum() for m in lpips.weighted(apart))
            (gradient,) = torch.autograd.grad(loss, code)
        losses.append(float(loss.detach()))
        if losses[-1] < best[0]:
            best = (losses[-1], code.detach().clone())
        code.grad = gradient
        optimizer.step()
        if advance is not None:
            advance(1)
    with torch.no_grad():
        s = best[1] if space == "s" else generator.styles(best[1])
        made = generator.synthesis(s)
        return Inverted(s[0], to_uint8(made)[0], losses, float(F.mse_loss(made, target)))


@dataclass(frozen=True)
class Options(ModelOptions):
    """Options of the command."""

    image: tuple[str, ...] = ()  # photos, or folders of them; none: two images of the model itself, to be found again
    space: Literal["w", "w+", "s"] = "w"  # what is optimised: one w, one w a layer, or s
    steps: int = 150  # of the optimisation, for each photo
    lr: float = 0.05  # its learning rate
    squared: float = 1.0  # weight of the mean squared difference beside LPIPS
    network: Literal["auto", "alexnet", "vgg16", "none"] = "auto"
    """LPIPS's; none: the squared difference alone; auto: alexnet where its weights are found, and said where not"""
    lpips: str | None = None  # weights of that network; none: found where a package brought them
    seed: int = 0  # of the model's own images
    out: Path = Path("inverted")  # folder of the images found, which are called as the photos
    codes_out: Path = Path("inverted")  # folder of their codes (safetensors)
    sheet: Path | None = None  # also write a contact sheet: photo, image found (PNG)
    json: Path | None = None  # also write the losses (JSON)

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, steps=1, squared=0, seed=0)
        check_png(self, "sheet")
        if not self.lr > 0:
            raise ValueError(f"lr: expected a number above 0, got {self.lr}")
        if self.network == "none" and not self.squared:
            raise ValueError("squared: expected a weight above 0 with --network none, got 0")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    photos_at, read = _photos(options.image)
    names = [Path(image).stem for image in photos_at] or ["own_0", "own_1"]
    images = {name: options.out / f"{name}.png" for name in names}
    codes = {name: options.codes_out / f"{name}.safetensors" for name in names}
    outputs = {f"out: {name}": path for name, path in images.items()}
    outputs |= {f"codes_out: {name}": path for name, path in codes.items()}
    check_outputs({**outputs, "sheet": options.sheet, "json": options.json}, photos_at)
    lpips = None
    if options.network != "none":
        try:
            kind: Literal["alexnet", "vgg16"] = "alexnet" if options.network == "auto" else options.network
            lpips = LPIPS(kind, options.lpips).eval().requires_grad_(False).to(device_of(options.device))
        except FileNotFoundError as error:
            if options.network != "auto" or options.lpips or not options.squared:
                raise FileNotFoundError(f"lpips: {error}; or --network none") from error
            print(f"without LPIPS, by the squared difference alone: {error}", file=sys.stderr)
    fusion = open_model(StyleFusion, options.model, options.device)
    if photos_at:
        photos = [_square(photo, fusion.size, image) for photo, image in zip(read, photos_at, strict=True)]
    else:
        photos = [fusion.generate(UNSEEN + options.seed + i).image for i in range(len(names))]
    rows, table = [], {}
    for name, photo in zip(names, photos, strict=True):
        with progress(f"inverting {name}"):
            found = invert(
                fusion.generator,
                photo,
                space=options.space,
                steps=options.steps,
                lr=options.lr,
                squared=options.squared,
                lpips=lpips,
            )
        psnr = 10 * math.log10(4 / max(found.squared, 1e-12))
        print(f"{name}: loss {found.losses[0]:.4f} -> {min(found.losses):.4f}, PSNR {psnr:.1f} dB")
        table[name] = {"losses": found.losses, "psnr": psnr, "space": options.space, "steps": options.steps}
        write_image(found.image, images[name])
        save_codes(fusion, found.s, codes[name])
        rows.append([cell(fusion, photo, name), cell(fusion, found.image, f"found in {options.space}, {psnr:.1f} dB")])
    if options.sheet:
        write_sheet(contact_sheet(rows), options.sheet)
    if options.json:
        write_json(options.json, table)
        print(f"written: {options.json}")
    return 0


def _photos(given: Sequence[str]) -> tuple[list[str], list[np.ndarray]]:
    """Return the files, those of folders among them, and their photos; errors name the option and the file."""
    try:
        files = pictures_at(given, "image")
        missing = next((file for file in files if not Path(file).is_file()), None)
        if missing is not None:
            raise FileNotFoundError(f"{missing}: no such file (expected a photo, or a folder of them)")
        return files, [read_image(file) for file in files]
    except (FileNotFoundError, ValueError) as error:
        text = str(error).removeprefix("image: ")
        raise type(error)(f"image: {text}") from error


def _square(photo: np.ndarray, size: tuple[int, int], name: str) -> np.ndarray:
    return fit(Picture(photo, np.zeros(photo.shape[:2], np.int32), name), size).image
