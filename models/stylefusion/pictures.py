"""What StyleFusion's commands share: codes in files, codes as words of an option, cells of sheets."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..data.files import find
from ..model_file import TensorFile
from ..pictures.options import check_outputs, name_and_file
from ..pictures.sheets import captioned, cell_size, enlarged
from ..sheets import legend
from .model import Codes, StyleFusion

CODES = TensorFile("stylefusion.codes", "StyleFusion's commands (--codes-out)")
_ONE = "code"  # the entry of a file with one code for all nodes
_HUES = (0.0, 0.6, 0.33, 0.12, 0.8, 0.5, 0.92, 0.22, 0.7, 0.42)


def save_codes(fusion: StyleFusion, codes: Codes | Tensor, path: str | os.PathLike[str]) -> None:
    """Write the codes (S) of all nodes, or one code for all of them, to a file, whole or not at all; the path is printed."""
    found = {_ONE: codes} if isinstance(codes, Tensor) else dict(codes)
    CODES.save(path, found, {"generator": fusion.generator_digest})
    print(f"written: {path}")


def load_codes(fusion: StyleFusion, path: str | os.PathLike[str], option: str) -> dict[str, Tensor]:
    """Read codes of all nodes; FileNotFoundError or ValueError name option and file."""
    try:
        codes, about = CODES.load(path)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{option}: {error}") from error
    if about.get("generator") != fusion.generator_digest:
        raise ValueError(f"{option}: {path}: expected codes of the model's generator, got those of another one")
    if set(codes) == {_ONE}:
        codes = dict.fromkeys(fusion.nodes, codes[_ONE])
    if set(codes) != set(fusion.nodes):
        raise ValueError(
            f"{option}: {path}: expected codes of the nodes {', '.join(fusion.nodes)}, got {', '.join(sorted(codes))}"
        )
    length = fusion.tree.layout.size
    wrong = next((name for name, code in codes.items() if code.shape != (length,) or not code.is_floating_point()), None)
    if wrong is not None:
        raise ValueError(f"{option}: {path}: {wrong}: expected ({length}) floats, got {tuple(codes[wrong].shape)}")
    return codes


def source(fusion: StyleFusion, word: str, option: str) -> dict[str, Tensor]:
    """Return the codes of all nodes that a word of an option stands for: a seed, or a file of codes."""
    if word.isdigit():
        try:
            return fusion.codes(int(word))
        except ValueError as error:
            raise ValueError(f"{option}: {error}") from error
    if not Path(word).suffix:
        raise ValueError(f"{option}: expected a seed or a file of codes, got {word!r}")
    return load_codes(fusion, word, option)


def words_of(given: Sequence[str], option: str) -> list[str]:
    """Return seeds and files of codes, a folder's files in its place; FileNotFoundError, naming the option: it has none."""
    found: list[str] = []
    for word in given:
        if word.isdigit() or not Path(word).is_dir():
            found.append(word)
            continue
        files = find(Path(word), (".safetensors",), deep=False).named
        if not files:
            raise FileNotFoundError(f"{option}: {word}: expected files of codes in the folder (*.safetensors), got none")
        found += map(str, files.values())
    return found


class Result(NamedTuple):
    """An image that a command changes."""

    word: str
    """Its seed, or file of codes."""
    out: Path | None
    """Where the new image goes (PNG)."""
    codes_out: Path | None
    """Where its codes go."""


def results_of(
    image: str,
    outs: tuple[Path | None, Path | None],
    default: str,
    others: Mapping[str, Path | None],
    writes: bool,
) -> list[Result]:
    """Return what becomes of --image, after checks that it can be written: one image, or of a folder one for every file.

    Args:
        image: a seed, a file of codes, or a folder of such.
        outs: --out and --codes-out: files, or for a folder of codes the folders of files that are called as those.
        default: name of --out, without suffix.
        others: option -> further file that is written.
        writes: whether images are written at all.

    Raises:
        ValueError: a file where a folder is needed or the other way round, or as :func:`check_outputs`.
        FileNotFoundError: a folder without codes.
    """
    words = words_of([image], "image")
    folder = words != [image]
    out, codes_out = outs
    for name, path, suffix in (("out", out, ".png"), ("codes_out", codes_out, ".safetensors")):
        if path is not None and (path.suffix.lower() == suffix) == folder:
            what = f"a folder, as --image {image} is one" if folder else f"a file name ending in {suffix}"
            raise ValueError(f"{name}: expected {what}, got {path}")
    out = out or Path(default if folder else f"{default}.png")
    names = [Path(word).stem for word in words]
    found = [
        Result(
            word,
            (out / f"{name}.png" if folder else out) if writes else None,
            codes_out / f"{name}.safetensors" if folder and codes_out else codes_out,
        )
        for word, name in zip(words, names, strict=True)
    ]
    files = {f"out: {each.out}" if folder else "out": each.out for each in found}
    files |= {f"codes_out: {each.codes_out}" if folder else "codes_out": each.codes_out for each in found}
    check_outputs({**files, **others}, [word for word in words if not word.isdigit()])
    return found


def changes_of(fusion: StyleFusion, given: Sequence[str], option: str) -> dict[str, dict[str, Tensor]]:
    """Return node -> codes of NODE=SEED or NODE=FILE texts; ValueError for another form, or a node that is not there."""
    found: dict[str, dict[str, Tensor]] = {}
    for entry in given:
        name, word = name_and_file(entry, option, "NODE=SEED or NODE=codes.safetensors")
        check_node(fusion, name, option)
        if name in found:
            raise ValueError(f"{option}: expected every node once, got {name} twice")
        found[name] = source(fusion, word, option)
    for name in found:
        above = next((node for node in fusion.tree.ancestors(name) if node in found), None)
        if above:
            raise ValueError(f"{option}: {name} lies below {above}, which changes whole")
    return found


def check_node(fusion: StyleFusion, name: str, option: str) -> None:
    """ValueError, listing all nodes, for one that the tree does not have."""
    if name not in fusion.nodes:
        raise ValueError(f"{option}: unknown node {name!r}; the tree has {', '.join(fusion.nodes)}")


# ---------------------------------------------------------------------------------------------------- cells of sheets


def cell(fusion: StyleFusion, image: np.ndarray, caption: str, lines: int = 1) -> np.ndarray:
    """Draw an image (H, W, 3) with a line below it, enlarged by a whole factor."""
    return captioned(enlarged(image, cell_size(fusion.size)), caption, lines=lines)


def colours(count: int) -> np.ndarray:
    """Return (count, 3) uint8 colours that are far apart for the first few."""
    hues = [_HUES[i] if i < len(_HUES) else (0.05 + 0.381966 * i) % 1.0 for i in range(count)]
    return np.array([[round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.8, 0.95)] for hue in hues], np.uint8)


def mask_cell(fusion: StyleFusion, codes: Mapping[str, Tensor], caption: str = "regions") -> np.ndarray | None:
    """Draw whose pixel is whose, softly, in colours; None for a model without segments."""
    if fusion.segments is None:
        return None
    names, masks = fusion.masks(codes)
    drawn = np.einsum("rhw,rc->hwc", masks, colours(len(names)).astype(np.float32)).round().clip(0, 255).astype(np.uint8)
    return cell(fusion, drawn, caption)


def region_key(fusion: StyleFusion) -> np.ndarray | None:
    """Draw the names of the regions in the colours of :func:`mask_cell`."""
    if fusion.segments is None:
        return None
    names = [name for name in fusion.regions if name in fusion.segments.names]
    return legend(names, colours(len(names)), cell_size(fusion.size)[0])


def heat_cell(fusion: StyleFusion, mean: np.ndarray, caption: str, most: float) -> np.ndarray:
    """Draw a mean change (H, W) from black over red and yellow to white, `most` being white."""
    share = np.clip(mean / max(most, 1e-9), 0, 1)[..., None] * 3
    drawn = np.clip(np.concatenate((share, share - 1, share - 2), -1), 0, 1)
    return cell(fusion, (255 * drawn).round().astype(np.uint8), caption)
