"""Files as people have them: the one way to find pictures and label maps in folders, and to open them.

Training, `data inspect`, compositions, `evaluate` and `parse` all come through here. Pillow is imported on first use.
"""

from __future__ import annotations

import io
import os
import struct
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

PICTURES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Suffixes of pictures, in either case."""
LOSSLESS = (".png", ".bmp", ".tif", ".tiff")
"""Those among them whose files can hold class ids. WebP cannot: it has colours only, and as a rule loses some of them."""

_FORMATS = ("PNG", "BMP", "TIFF")  # what a label map may be, whatever its file is called
_LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF", "lossy TIFF")
_LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")  # compressions
_LABEL_MODES = ("P", "L", "1", "I", "I;16", "I;16B")
_LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir")  # of Windows, macOS and a storage device
_PNG = b"\x89PNG\r\n\x1a\n"


# ------------------------------------------------------------------------------------------------------------- finding


@dataclass(frozen=True)
class LeftOver:
    """A file that nothing is made of, and why."""

    file: Path
    reason: str
    """The same words for all files of a kind, for they are counted by them."""


@dataclass(frozen=True)
class Files:
    """The files of a folder by name; made by :func:`find`."""

    folder: Path
    named: dict[str, Path]
    """Name -> file, sorted. A name is the path in the folder without the suffix, "/" between its parts, in NFC."""
    left: tuple[LeftOver, ...]
    looked_for: str
    """Pattern of their names, for messages: "{}_L.png"."""

    def place(self, name: str) -> Path:
        """Return where the file of a name is looked for."""
        return self.folder / self.looked_for.format(name)


def plain_name(text: str) -> str:
    r"""Return a name that can be compared and printed.

    In NFC, for macOS stores "ö" as two characters, others as one. Bytes that are no UTF-8, from an old archive say, are
    written as `\xf6`.
    """
    return unicodedata.normalize("NFC", text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed over: `._a.jpg`, `.DS_Store`, `Thumbs.db`, `__MACOSX` and their like."""
    return name.startswith(".") or name.lower() in _LITTER


def walk(folder: Path, deep: bool = True, around: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """Yield the files in a folder, hidden ones aside, in an order that is the same everywhere.

    Args:
        folder: where; nothing is yielded of a folder that is not there.
        deep: go into subfolders, linked ones too.
        around: devices and numbers of the folders around it.

    Raises:
        ValueError: a link that leads back to a folder around it. OSError: a folder that cannot be listed.
    """
    if not folder.is_dir():
        return
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in around:
        raise ValueError(f"{folder}: a link that leads back to a folder around it, round and round: remove it")
    with os.scandir(folder) as entries:
        shown = sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)
    inner = []
    for entry in shown:
        if entry.is_dir():
            inner.append(folder / entry.name)
        else:
            yield folder / entry.name
    for place in inner if deep else ():
        yield from walk(place, deep, (*around, here))


def find(
    folder: Path,
    suffixes: Sequence[str] = PICTURES,
    *,
    prefer: Sequence[str] = (),
    ending: str = "",
    flat: bool = False,
    deep: bool = True,
    companions: tuple[str, ...] = (),
    without: Path | None = None,
) -> Files:
    """Find the files of a folder.

    Args:
        folder: where; without it there are none.
        suffixes: of the files, lower-case; theirs may be upper-case.
        prefer: of two files of one name the one with such a suffix is taken and the other is left over.
        ending: what their stems end with; it is no part of the name.
        flat: a name is the stem alone, wherever the file lies (sets whose stems are unique).
        deep: look into subfolders.
        companions: lower-case endings of other files that belong there, and are not left over.
        without: a folder that is passed over, with all that is in it.

    Returns:
        Files by name, and what is left over.

    Raises:
        ValueError: two files of one name, both of a preferred suffix or none preferred; a loop of links. OSError as
            :func:`walk`.
    """
    named: dict[str, Path] = {}
    left: list[LeftOver] = []
    avoided = None if without is None else without.resolve()
    for path in walk(folder, deep):
        stem, suffix = os.path.splitext(path.name)
        if avoided is not None and avoided in path.resolve().parents:
            continue
        if suffix.lower() not in suffixes or not stem.endswith(ending):
            if not (companions and path.name.lower().endswith(companions)):
                left.append(LeftOver(path, f"not {_either([ending + known for known in suffixes])}"))
            continue
        name = plain_name(stem[: len(stem) - len(ending)])
        if not flat and path.parent != folder:
            name = f"{plain_name(path.parent.relative_to(folder).as_posix())}/{name}"
        if name not in named:
            named[name] = path
            continue
        first, second = named[name], path
        if second.suffix.lower() in prefer:
            first, second = second, first
        if not prefer or second.suffix.lower() in prefer:
            both = " and ".join(one.relative_to(folder).as_posix() for one in (named[name], path))
            raise ValueError(f"{folder}: expected one {'label map' if prefer else 'picture'} per name, got {both}")
        named[name] = first
        left.append(LeftOver(second, f"beside one that is taken ({_either(prefer)})"))
    pattern = ("**/" if flat else "") + "{}" + ending + (prefer[0] if prefer else ".*" if len(suffixes) > 1 else suffixes[0])
    return Files(folder, dict(sorted(named.items())), tuple(left), pattern)


def partners(names: Iterable[str], others: Collection[str]) -> dict[str, str]:
    """Find, for names of files, the names in another folder that belong to them.

    Equal names do. So do names of one stem, where either folder has that stem once and one of the two files lies in no
    subfolder: pictures may be sorted into subfolders and their label maps not. `cat/t0` and `dog/t0` are two.

    Returns:
        Name -> its partner, for the names that have one.
    """
    names = list(names)
    found = {name: name for name in names if name in others}
    if len(found) < len(names):
        stems = Counter(name.rpartition("/")[2] for name in names)
        theirs = Counter(other.rpartition("/")[2] for other in others)
        once = {other.rpartition("/")[2]: other for other in others if theirs[other.rpartition("/")[2]] == 1}
        for name in names:
            inside, _, stem = name.rpartition("/")
            if name not in found and stems[stem] == 1 and stem in once and not (inside and "/" in once[stem]):
                found[name] = once[stem]
    return found


def summary(left: Sequence[LeftOver], names: int = 3) -> list[str]:
    """Return a line per reason: how many files are left over for it, and the first `names` of them."""
    groups: dict[str, list[Path]] = {}
    for one in left:
        groups.setdefault(one.reason, []).append(one.file)
    return [
        f"{len(files)} {reason}: {', '.join(plain_name('/'.join(file.parts[-2:])) for file in files[:names])}"
        + (", ..." if len(files) > names else "")
        for reason, files in groups.items()
    ]


def say_left_over(where: str | os.PathLike[str], left: Sequence[LeftOver], hint: str = "") -> None:
    """Warn, in one short line, of files that are left over in a folder; nothing where there are none."""
    if left:
        files = "1 file is" if len(left) == 1 else f"{len(left)} files are"
        warnings.warn(f"{os.fspath(where)}: {files} left over ({'; '.join(summary(left, 2))}){hint}", stacklevel=3)


def _either(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else words[0]


# ------------------------------------------------------------------------------------------------------------- opening


def open_picture(path: Path) -> Image.Image:
    """Open a picture as a viewer shows it: upright, RGB, 8 bits a channel.

    It is turned as its camera noted (EXIF orientation). 16-bit grey is scaled, 0..65535 to 0..255. What is transparent is
    laid on white, which is the paper that cut-outs are shown on and what DeepFashion pads with; the colours that hide below
    full transparency never show.

    Args:
        path: the file.

    Returns:
        A Pillow image of mode RGB.

    Raises:
        ValueError: not readable, a PNG whose checksum is wrong, or 32 bits a channel; the message names the file.
        ImportError: no Pillow.
    """
    opened = _decoded(path)
    if opened.picture.mode in ("I", "F") and not opened.is_16_bit:
        raise ValueError(
            f"{path}: expected 8 or 16 bits a channel, got 32 (mode {opened.picture.mode}), which do not say what is white: "
            f"save it with 8 or 16 bits"
        )
    try:
        return _rgb(opened)
    except MemoryError:
        raise
    except Exception as error:  # Pillow cannot convert the mode
        raise ValueError(f"{path}: not a readable image file ({error})") from error


def open_layer(path: Path) -> Image.Image:
    """Open a picture with its transparency: upright, RGBA, 8 bits a channel; opaque where the file says nothing of it.

    Args:
        path: the file.

    Raises:
        ValueError: not readable, 16 or 32 bits a channel; the message names the file. ImportError: no Pillow.
    """
    opened = _decoded(path)
    if opened.bits == 16 or opened.picture.mode in ("I", "F") or opened.is_16_bit:
        raise ValueError(f"{path}: expected a layer of 8 bits a channel, got mode {opened.picture.mode}, {opened.bits} bits")
    return opened.picture.convert("RGBA")


def read_ids(path: Path, colours: Mapping[tuple[int, int, int], int] | None = None) -> np.ndarray:
    """Open a label or instance map: (H, W) int32 of stored ids, upright as :func:`open_picture`.

    Args:
        path: palette or grey file (8, 16 or 32 bit; 1, 2 and 4 too) that loses nothing: PNG, BMP or TIFF, whatever it is
            called; or a MATLAB file with a variable `groundtruth`.
        colours: RGB -> id, to read colour files as well.

    Raises:
        ValueError: not readable, a PNG whose checksum is wrong, a lossy format, colour file without `colours`, or a colour
            that is not in it; names the file.
    """
    if path.suffix.lower() == ".mat":
        return read_matlab(path, "groundtruth").astype(np.int32)
    opened = _lossless(path)
    plane = opened.picture
    if plane.mode in _LABEL_MODES:
        ids = np.asarray(plane).astype(np.int32)
        # Pillow spreads grey of 2 and 4 bits over 0..255
        return ids // {2: 85, 4: 17}[opened.bits] if plane.mode == "L" and opened.bits in (2, 4) else ids
    if colours is None or plane.mode not in ("RGB", "RGBA"):
        raise ValueError(
            f"{path}: expected a palette or grey PNG (pixel value = class id), got mode {plane.mode}: "
            f"save the ids themselves, as one channel"
        )
    rgb = np.asarray(plane.convert("RGB")).astype(np.int32)
    code = (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]
    codes = np.array([(r << 16) | (g << 8) | b for r, g, b in colours], np.int32)
    order = np.argsort(codes)
    at = np.clip(np.searchsorted(codes, code, sorter=order), 0, len(codes) - 1)
    found = order[at]
    wrong = codes[found] != code
    if wrong.any():
        row, column = (int(v) for v in np.argwhere(wrong)[0])
        raise ValueError(
            f"{path}: RGB {tuple(rgb[row, column].tolist())} at row {row}, column {column} is no class's colour"
        )
    return np.array(list(colours.values()), np.int32)[found]


def read_mask(path: Path) -> np.ndarray:
    """Open the mask of one part: (H, W) uint8 weights, 0 for none; raises as :func:`read_ids`."""
    opened = _lossless(path)
    return np.asarray(_eight_bits(opened.picture) if opened.is_16_bit else opened.picture.convert("L"))


def read_matlab(path: Path, variable: str) -> np.ndarray:
    """Read a variable of a MATLAB file. ValueError, naming the file, when that fails; ImportError without scipy."""
    try:
        from scipy.io import loadmat
    except ImportError as error:  # pragma: no cover - depends on the installation
        raise ImportError("reading .mat files needs scipy: pip install 'mixsyn_fast[models]'") from error
    try:
        return np.asarray(loadmat(path)[variable])
    except Exception as error:  # scipy raises many kinds on a damaged file
        raise ValueError(f"{path}: not a MATLAB file with a variable {variable!r} ({error})") from error


@dataclass(frozen=True)
class _Decoded:
    picture: Image.Image
    """Upright, in its own mode."""
    format: str
    """Pillow's name of the file's format, which may not be that of its suffix."""
    bits: int
    """Bits of a channel, where the format says so, else 8."""

    @property
    def is_16_bit(self) -> bool:
        """Whether it is grey of 16 bits; PNGs of it are of mode I in older Pillow."""
        return self.picture.mode.startswith("I;16") or (self.picture.mode == "I" and self.format == "PNG")


def _decoded(path: Path) -> _Decoded:
    """Decode an image file; ValueError, naming the file, when that fails."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:  # pragma: no cover - depends on the installation
        raise ImportError("reading image files needs pillow: pip install 'mixsyn_fast[models]'") from error
    try:
        data = path.read_bytes()
        if data.startswith(_PNG):
            _check_png(data)
        picture = Image.open(io.BytesIO(data))
        kind, bits = picture.format or "", 8
        if kind == "PNG":
            bits = data[24]
        elif kind == "TIFF":
            bits = picture.tag_v2.get(258, (8,))[0]  # type: ignore[attr-defined]
            if picture.info.get("compression") in _LOSSY_TIFF:
                kind = "lossy TIFF"
        picture.load()
        return _Decoded(_upright(picture), kind, bits)
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not a readable image file (of no format that Pillow knows)") from None
    except (
        Exception
    ) as error:  # decoders raise all kinds on damaged files: OSError, SyntaxError, struct.error, zlib.error ...
        raise ValueError(f"{path}: not a readable image file ({error})") from error


def _check_png(data: bytes) -> None:
    """ValueError for a PNG that is cut off or has a wrong checksum.

    Pillow looks at no checksum of the pixels, and at none at all where somebody has it load truncated images.
    """
    view = memoryview(data)
    at, kind = len(_PNG), b""
    while kind != b"IEND":
        end = at + 8 + struct.unpack_from(">I", data, at)[0] if at + 12 <= len(data) else len(data)
        if end + 4 > len(data):
            raise ValueError("it is cut off")
        kind = data[at + 4 : at + 8]
        if zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise ValueError(f"damaged: a checksum is wrong, of the part {kind.decode('latin-1')} at byte {at}")
        at = end + 4


def _upright(picture: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF orientation says; one that cannot be understood says nothing."""
    from PIL import Image

    try:
        orientation = picture.getexif().get(0x0112)
    except Exception:  # a viewer shows such a picture as well
        return picture
    turn = Image.Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    if orientation not in turns:
        return picture
    turned = picture.transpose(turns[orientation])
    turned.info = picture.info  # transparency among it
    return turned


def _eight_bits(picture: Image.Image) -> Image.Image:
    from PIL import Image

    return Image.fromarray(((np.asarray(picture).astype(np.uint32) + 128) // 257).astype(np.uint8))


def _rgb(opened: _Decoded) -> Image.Image:
    from PIL import Image

    picture = opened.picture
    see_through = picture.info.get("transparency")  # one grey or colour, in the file's own bits
    if opened.is_16_bit:
        picture = _eight_bits(picture)
        if isinstance(see_through, int):
            picture.paste(255, mask=Image.fromarray(np.asarray(opened.picture) == see_through))
    elif opened.bits == 16 and isinstance(see_through, tuple):
        picture.info["transparency"] = tuple(value >> 8 for value in see_through)  # Pillow keeps the upper byte
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        above = picture.convert("LA" if picture.mode == "La" else picture.mode).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    return picture.convert("RGB")


def _lossless(path: Path) -> _Decoded:
    opened = _decoded(path)
    if opened.format not in _FORMATS:
        why = "a lossy format cannot hold class ids" if opened.format in _LOSSY else "ids may not be those that were saved"
        raise ValueError(
            f"{path}: expected a label map as PNG (or BMP, TIFF), got {opened.format}: {why}; save it again as PNG from the "
            f"program that made it"
        )
    return opened
