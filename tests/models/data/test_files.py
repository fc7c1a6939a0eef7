"""Files as people have them: finding them in folders, opening pictures and label maps."""

from __future__ import annotations

import os
import struct
import unicodedata
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from mixsyn_fast.models.data.files import (
    LOSSLESS,
    PICTURES,
    find,
    open_picture,
    partners,
    read_ids,
    read_mask,
    say_left_over,
    summary,
)
from mixsyn_fast.models.data.layouts import label_maps

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")

NFC, NFD = (unicodedata.normalize(form, "größe") for form in ("NFC", "NFD"))


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def png(path: Path, bits: int, kind: int, values: np.ndarray, width: int | None = None, **parts: bytes) -> None:
    """Write a PNG of any colour type, rows of `values` as they are."""
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    head = struct.pack(">2I5B", width or values.shape[1], len(values), bits, kind, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in {"IHDR": head, **parts, "IDAT": zlib.compress(rows), "IEND": b""}.items():
        data += struct.pack(">I", len(body)) + name.encode() + body
        data += struct.pack(">I", zlib.crc32(name.encode() + body))
    path.write_bytes(data)


def shown(path: Path) -> np.ndarray:
    return np.asarray(open_picture(path))


# --- finding ------------------------------------------------------------------------------------------------------------


def test_names_are_paths_in_nfc_and_suffixes_of_either_case(tmp_path: Path) -> None:
    assert NFC != NFD
    touch(tmp_path, "b.JPG", "a.Png", f"{NFD}/{NFD}.tif", "c.d.jfif", "e.TIFF", "f.webp", "g.bmp", "h.jpeg")
    found = find(tmp_path)
    assert list(found.named) == ["a", "b", "c.d", "e", "f", "g", f"{NFC}/{NFC}", "h"] and not found.left
    assert all(path.is_file() for path in found.named.values())
    assert set(LOSSLESS) < set(PICTURES)


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(bytes(tmp_path) + b"/gr\xf6\xdfe.jpg")).write_bytes(b"")
    except OSError:
        pytest.skip("the file system takes UTF-8 names alone")
    found = find(tmp_path)
    assert list(found.named) == ["gr\\xf6\\xdfe"] and found.named["gr\\xf6\\xdfe"].is_file()


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    names = ("._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/._a.jpg", ".cache/x.png", "@eaDir/a.jpg/b.jpg")
    found = find(touch(tmp_path, "a.jpg", *names))
    assert list(found.named) == ["a"] and not found.left


def test_what_is_left_over_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.heic", "sub/c.gif", "notes.txt")
    found = find(tmp_path)
    assert [one.file.name for one in found.left] == ["b.heic", "notes.txt", "c.gif"]
    assert summary(found.left, 2) == [
        f"3 not .jpg, .jpeg, .jfif, .png, .webp, .bmp, .tif or .tiff: {tmp_path.name}/b.heic, {tmp_path.name}/notes.txt, ..."
    ]
    with pytest.warns(UserWarning, match=r"^set: 3 files are left over \(3 not .*, \.\.\.\); look$"):
        say_left_over("set", found.left, "; look")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        say_left_over("set", ())
    assert not find(tmp_path, companions=(".heic", ".gif", "notes.txt")).left
    assert find(tmp_path / "nowhere").named == {}


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, "far/u.jpg", "set/t.jpg")
    os.symlink(tmp_path / "far", tmp_path / "set" / "part1")
    os.symlink(tmp_path / "far" / "u.jpg", tmp_path / "set" / "v.jpg")
    assert list(find(tmp_path / "set").named) == ["part1/u", "t", "v"]
    os.symlink(tmp_path / "set", tmp_path / "far" / "back")
    with pytest.raises(ValueError, match="part1/back: a link that leads back to a folder around it"):
        find(tmp_path / "set")
    assert list(find(tmp_path / "set", deep=False).named) == ["t", "v"]
    (tmp_path / "far" / "back").unlink()
    os.symlink(tmp_path / "nowhere.jpg", tmp_path / "set" / "w.jpg")
    with pytest.raises(ValueError, match="w.jpg: not a readable image file"):  # a broken link is no silent loss
        open_picture(find(tmp_path / "set").named["w"])
    os.symlink(tmp_path / "set" / "self", tmp_path / "set" / "self")
    with pytest.raises(OSError, match="self"):
        find(tmp_path / "set")


def test_two_files_of_one_name(tmp_path: Path) -> None:
    touch(tmp_path, "cat/t0.jpg", "dog/t0.jpg")
    assert list(find(tmp_path).named) == ["cat/t0", "dog/t0"]
    with pytest.raises(ValueError, match="expected one picture per name, got cat/t0.jpg and dog/t0.jpg"):
        find(tmp_path, flat=True)
    touch(tmp_path, "cat/t0.png")
    with pytest.raises(ValueError, match="expected one picture per name, got cat/t0.jpg and cat/t0.png"):
        find(tmp_path)
    names = touch(tmp_path / "forms", f"{NFC}.jpg", f"{NFD}.jpg")
    with pytest.raises(ValueError, match="expected one picture per name"):
        find(names)


def test_the_lossless_file_is_the_label_map(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.png", "a.webp", "b.png", "b.webp", "c.jpg", "c.webp")
    found = label_maps(tmp_path)
    assert [path.name for path in found.named.values()] == ["a.png", "b.png", "c.jpg"]  # c.jpg is refused when it is read
    assert sorted(one.file.name for one in found.left) == ["a.jpg", "a.webp", "b.webp", "c.webp"]
    touch(tmp_path, "a.tif")
    with pytest.raises(ValueError, match="expected one label map per name, got a.png and a.tif"):
        label_maps(tmp_path)


def test_partners() -> None:
    assert partners(["cat/t0", "dog/t0"], ["cat/t0", "dog/t0"]) == {"cat/t0": "cat/t0", "dog/t0": "dog/t0"}
    assert partners(["x/a", "b"], ["a", "y/b"]) == {"x/a": "a", "b": "y/b"}  # one side is not sorted into subfolders
    assert partners(["cat/t0", "dog/t0"], ["t0"]) == {}  # whose would it be
    assert partners(["t0"], ["cat/t0", "dog/t0"]) == {}
    assert partners(["cat/t0"], ["dog/t0"]) == {}
    assert partners([], ["a"]) == {} and partners(["a"], []) == {}


def test_a_folder_that_is_written_to_is_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "out/images/a.png", "outer/b.jpg")
    assert list(find(tmp_path, without=tmp_path / "out").named) == ["a", "outer/b"]


# --- opening pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(orientation: int, suffix: str, tmp_path: Path) -> None:
    from PIL import ImageOps

    dark, light = np.zeros((8, 24), np.uint8), np.full((8, 24), 255, np.uint8)
    stored = Image.fromarray(np.block([[dark, light], [dark, dark]])).convert("RGB")  # 16 x 48
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif)
    again = Image.open(path)
    expected = np.asarray(ImageOps.exif_transpose(again).convert("RGB")).astype(int)
    found = shown(path).astype(int)
    assert found.shape == ((16, 48, 3) if orientation < 5 else (48, 16, 3))
    assert np.array_equal(found, expected)
    bright = [bool(found[row, column, 0] > 128) for row in (2, -3) for column in (2, -3)]  # upper left, ...
    corner = {1: 1, 2: 0, 3: 2, 4: 3, 5: 2, 6: 3, 7: 1, 8: 0}[orientation]  # where the light quarter must be
    assert bright == [k == corner for k in range(4)]


def test_an_exif_block_that_is_damaged_says_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (4, 2), "red").save(tmp_path / "a.png", exif=b"Exif\0\0nonsense")
    assert shown(tmp_path / "a.png").shape == (2, 4, 3)


@pytest.mark.parametrize("kind", ["<u2", ">u2"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled(kind: str, suffix: str, tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (4, 1))
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":
        Image.frombytes("I;16B" if kind == ">u2" else "I;16", (256, 4), ramp.astype(kind).tobytes()).save(path)
    else:
        Image.fromarray(ramp).save(path)
    assert np.array_equal(shown(path), np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (4, 1, 3)))


def test_32_bits_are_refused(tmp_path: Path) -> None:
    for values in (np.zeros((2, 2), np.int32), np.zeros((2, 2), np.float32)):
        Image.fromarray(values).save(tmp_path / "a.tif")
        with pytest.raises(ValueError, match=r"a.tif: expected 8 or 16 bits a channel, got 32 .*save it with 8 or 16 bits"):
            open_picture(tmp_path / "a.tif")


def test_16_bit_pictures_with_transparency(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    grey = np.array([[0, 0x8000, 0xFFFF]], ">u2")
    png(path, 16, 0, grey, tRNS=struct.pack(">H", 0x8000))
    assert shown(path)[0, :, 0].tolist() == [0, 255, 255]
    colours = np.array([[[0, 0x8000, 0xFFFF], [0x9000, 0xA000, 0xB000]]], ">u2")
    png(path, 16, 2, colours)
    assert shown(path).tolist() == [[[0, 0x80, 0xFF], [0x90, 0xA0, 0xB0]]]
    png(path, 16, 2, colours, tRNS=struct.pack(">3H", 0x9000, 0xA000, 0xB000))
    assert shown(path).tolist() == [[[0, 0x80, 0xFF], [255, 255, 255]]]
    png(path, 16, 4, np.array([[[0x8000, 0xFFFF], [0x8000, 0]]], ">u2"))
    assert shown(path)[0, :, 0].tolist() == [0x80, 255]


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    red = np.zeros((1, 3, 4), np.uint8)
    red[..., 0], red[0, :, 3] = 200, (255, 0, 51)
    expected = np.array([[[200, 0, 0], [255, 255, 255], [244, 204, 204]]])
    path = tmp_path / "a.png"
    Image.fromarray(red).save(path)
    assert abs(shown(path).astype(int) - expected).max() <= 1
    Image.fromarray(red).save(tmp_path / "a.webp", lossless=True, exact=True)
    assert abs(shown(tmp_path / "a.webp").astype(int) - expected).max() <= 1
    grey = np.array([[[90, 255], [90, 0]]], np.uint8)
    Image.fromarray(grey, "LA").save(path)
    assert shown(path).tolist() == [[[90] * 3, [255] * 3]]
    plane = Image.fromarray(np.array([[0, 1]], np.uint8))
    plane.putpalette([10, 20, 30, 40, 50, 60])
    plane.save(path)
    assert shown(path).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    plane.save(path, transparency=1)
    assert shown(path).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)).save(path, transparency=(4, 5, 6))
    assert shown(path).tolist() == [[[1, 2, 3], [255, 255, 255]]]
    exif = Image.Exif()
    exif[0x0112] = 3
    plane.save(path, transparency=1, exif=exif)
    assert shown(path).tolist() == [[[255, 255, 255], [10, 20, 30]]]


def test_other_modes_become_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (3, 2), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    assert shown(tmp_path / "a.jpg")[0, 0, 0] > 200 and shown(tmp_path / "a.jpg")[0, 0, 1] < 50
    Image.new("1", (3, 2), 1).save(tmp_path / "b.png")
    assert (shown(tmp_path / "b.png") == 255).all()
    Image.new("L", (3, 2), 7).save(tmp_path / "c.bmp")
    assert (shown(tmp_path / "c.bmp") == 7).all()


# --- opening label maps -------------------------------------------------------------------------------------------------

IDS = np.arange(12, dtype=np.uint8).reshape(3, 4)


def test_lossless_label_maps(tmp_path: Path) -> None:
    for name in ("a.png", "a.PNG", "a.bmp", "a.tif"):
        Image.fromarray(IDS).save(tmp_path / name)
        assert np.array_equal(read_ids(tmp_path / name), IDS) and read_ids(tmp_path / name).dtype == np.int32
    Image.fromarray(IDS.astype(np.uint16) + 300).save(tmp_path / "b.png")
    assert np.array_equal(read_ids(tmp_path / "b.png"), IDS.astype(int) + 300)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(IDS).save(tmp_path / "c.png", exif=exif)  # as its picture
    assert np.array_equal(read_ids(tmp_path / "c.png"), IDS[::-1, ::-1])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_of_few_bits_holds_ids(bits: int, tmp_path: Path) -> None:
    """Some programs write grey PNGs with as few bits as are needed."""
    ids = (np.arange(16).reshape(2, 8) % (1 << bits)).astype(np.uint8)
    png(
        tmp_path / "a.png", bits, 0, np.packbits(np.unpackbits(ids[..., None], axis=2)[..., 8 - bits :].reshape(2, -1), 1), 8
    )
    assert np.array_equal(read_ids(tmp_path / "a.png"), ids)


@pytest.mark.parametrize("name", ["a.jpg", "a.jfif", "a.webp", "a.png", "a.tif", "lossless.webp"])
def test_lossy_label_maps_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    plane = Image.fromarray(IDS)
    if name.endswith("webp"):
        plane.convert("RGB").save(path, lossless=name == "lossless.webp")  # it has colours only
    elif name.endswith("tif"):
        plane.convert("RGB").save(path, compression="jpeg")
    else:
        plane.save(path, "JPEG")  # a.png is one by its name alone
    for read in (read_ids, read_mask):
        with pytest.raises(ValueError, match=f"{name}: expected a label map as PNG .* lossy format cannot hold class ids"):
            read(path)


def test_colours_are_no_ids(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a.png: expected a palette or grey PNG .*got mode RGB: save the ids themselves"):
        read_ids(tmp_path / "a.png")
    assert (read_ids(tmp_path / "a.png", {(0, 0, 0): 5}) == 5).all()


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("read", [read_ids, read_mask, open_picture])
def test_damaged_pngs_are_found(read, lenient: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every flipped bit and every cut, also where somebody tells Pillow to load what it can."""
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", lenient)
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 4, (12, 16), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    read(path)
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        path.write_bytes(bytes(damaged))
        with pytest.raises(ValueError, match=r"a\.png: not a readable image file"):
            read(path)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.png: not a readable image file"):
            read(path)


def test_masks_are_weights(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png").tolist() == [[0, 1, 255]]
    Image.new("1", (2, 1), 1).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png").tolist() == [[255, 255]]
