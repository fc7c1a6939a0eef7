"""Pictures drawn by code, and folders of them read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mixsyn_fast.models.data import (
    NUM_CLASSES,
    STREET_CLASSES,
    colorize,
    draw,
    draw_batch,
    first_items,
    open_source,
    palette,
)

KINDS = sorted(NUM_CLASSES)


def pattern_share(labels: np.ndarray) -> float:
    """Distinct 5x5 label neighbourhoods per pixel."""
    padded = np.pad(labels, 2, constant_values=255)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5)).reshape(-1, 25)
    rows = np.ascontiguousarray(windows).view([("", labels.dtype)] * 25)
    return len(np.unique(rows)) / labels.size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [64, (48, 96), (65, 40)])
def test_shapes_types_and_ids(kind: str, size: int | tuple[int, int]) -> None:
    image, labels = draw(kind, 5, size)
    expected = (size, size) if isinstance(size, int) else size
    assert image.shape == (*expected, 3) and image.dtype == np.uint8
    assert labels.shape == expected and labels.dtype == np.uint8
    assert labels.max() < NUM_CLASSES[kind]
    assert image.std() > 10  # a picture, not a plain surface


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind: str) -> None:
    first, again, other = draw(kind, 3, 64), draw(kind, 3, 64), draw(kind, 4, 64)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0]) and not np.array_equal(first[1], other[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_samples_one_scene(kind: str) -> None:
    small, large = draw(kind, 1, 64)[1], draw(kind, 1, 128)[1]
    assert (small == large[::2, ::2]).mean() > 0.9


def test_faces_have_their_parts_and_real_pattern_counts() -> None:
    _, labels = draw_batch("face", 6, 256)
    for face in labels:
        areas = np.bincount(face.ravel(), minlength=19) / face.size
        assert areas[1] > 0.1 and areas[17] > 0.01  # skin, neck
        assert (areas[[2, 4, 5, 6, 7, 11, 12]] > 3e-4).all()  # nose, eyes, brows, lips
        assert areas[13] + areas[14] > 0.04  # hair or hat
        rows_eye = [np.argwhere(face == k)[:, 1].mean() for k in (4, 5)]
        assert rows_eye[0] > rows_eye[1]  # the person's left eye is on the right
    share = np.mean([pattern_share(face) for face in labels])
    assert 0.03 < share < 0.07  # real faces: 0.042
    share = np.mean([pattern_share(np.ascontiguousarray(face[::2, ::2])) for face in labels])
    assert 0.09 < share < 0.18  # real faces: 0.125


def test_every_face_class_is_drawn_sometimes() -> None:
    _, labels = draw_batch("face", 60, 96)
    assert set(np.unique(labels)) == set(range(19))


def test_facades_and_streets_are_varied() -> None:
    _, facades = draw_batch("facade", 24, 64)
    assert len(np.unique(facades)) == 12
    _, streets = draw_batch("street", 24, (64, 128))
    seen = set(np.unique(streets).tolist())
    assert seen <= set(STREET_CLASSES.values()) and len(seen) >= 18


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="kind: expected one of face, facade, street, got 'cat'"):
        draw("cat")
    with pytest.raises(ValueError, match="size: expected at least 8 x 8"):
        draw("face", 0, (4, 64))
    assert draw_batch("face", 0, 32)[1].shape == (0, 32, 32)


def test_colours() -> None:
    assert len(np.unique(palette(19), axis=0)) == 19
    assert len(np.unique(palette(151), axis=0)) >= 145
    assert palette(0).shape == (0, 3)
    coloured = colorize(np.array([[0, 1], [-1, 7]]), 3)
    assert coloured.shape == (2, 2, 3) and (coloured[1] == 255).all()


# ------------------------------------------------------------------------------------------------- folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    image_module = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for i, size in enumerate([(40, 56), (48, 48)]):
        image, labels = draw("face", i, size)
        image_module.fromarray(image).save(tmp_path / "images" / f"p{i}.png")
        plane = image_module.fromarray(labels)
        if i == 0:
            plane = plane.convert("P")
            plane.putpalette(palette(256).tobytes())
            plane.putdata(labels.ravel().tolist())
        plane.save(tmp_path / "labels" / f"p{i}.png")
    return tmp_path


def test_first_items_of_a_folder(folder: Path) -> None:
    source = open_source(folder, "folder", "all", classes=19)
    assert source.names() == ["p0", "p1"]
    for i, size in enumerate([(40, 56), (48, 48)]):
        sample, expected = source.read(i), draw("face", i, size)
        assert np.array_equal(sample.image, expected[0]) and np.array_equal(sample.labels, expected[1])
    images, labels = first_items(source, 3, 32)
    assert images.shape == (3, 32, 32, 3) and labels.shape == (3, 32, 32) and labels.dtype == np.int32
    assert np.array_equal(labels[0], labels[2])  # two pictures, repeated
    crop = draw("face", 0, (40, 56))[1][:, 8:48]  # centred square
    rows = (np.arange(32) * 2 + 1) * 40 // 64
    assert np.array_equal(labels[0], crop[rows[:, None], rows[None]])
    with pytest.raises(ValueError, match=r"size: expected positive"):
        first_items(source, 1, 0)
    with pytest.raises(ValueError, match=r"count: expected at least 1"):
        first_items(source, 0, 32)


def test_bad_files_of_a_folder_are_named(folder: Path) -> None:
    from PIL import Image

    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        open_source(folder / "nowhere", "folder", "all", classes=19)
    with pytest.raises(FileNotFoundError, match="expected folders images/ and labels/"):
        open_source(folder / "labels", "folder", "all", classes=19)
    with pytest.raises(ValueError, match=r"p0\.png: expected class ids 0\.\.4, got \d+ at row \d+, column \d+"):
        first_items(open_source(folder, "folder", "all", classes=5), 1, 32)
    source = open_source(folder, "folder", "all", classes=19)
    labels, image = folder / "labels" / "p0.png", folder / "images" / "p0.png"
    Image.new("RGB", (56, 40)).save(labels)
    with pytest.raises(ValueError, match=r"labels/p0\.png: expected a palette or grey PNG .* got mode RGB"):
        first_items(source, 1, 32)
    Image.new("L", (10, 40)).save(labels)
    with pytest.raises(ValueError, match=r"labels/p0\.png: label map is 10 x 40 but p0\.png is 56 x 40"):
        first_items(source, 1, 32)
    labels.write_bytes(b"\x89PNG no")
    with pytest.raises(ValueError, match=r"labels/p0\.png: not a readable image file"):
        first_items(source, 1, 32)
    labels.unlink()
    with pytest.warns(UserWarning, match=r"1 file is left over \(1 without a label map: images/p0.png\)"):
        open_source(folder, "folder", "all", classes=19)
    image.unlink()
    with pytest.raises(ValueError, match="not a readable image"):
        first_items(source, 1, 32)
    (folder / "images" / "p1.png").unlink()
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        open_source(folder, "folder", "all", classes=19)
