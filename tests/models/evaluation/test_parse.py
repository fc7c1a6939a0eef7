"""The face parser: strict loading, class order, sizes, the command; accuracy where the weights are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mixsyn_fast.models.data import FACE_CLASSES, draw, open_source
from mixsyn_fast.models.evaluation import parse
from mixsyn_fast.models.face_parser import FILE_CLASSES, FaceParser, load_face_parser
from mixsyn_fast.models.metrics.regions import confusion, iou

from mixsyn_fast.commands import run_command

Image = pytest.importorskip("PIL.Image", reason="reads and writes pictures")


@pytest.fixture(scope="module")
def network() -> FaceParser:
    torch.manual_seed(0)
    return FaceParser().eval()


@pytest.fixture(scope="module")
def weights(network: FaceParser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(network.state_dict(), path)
    return path


def run(photos: list[Path], **given: object) -> int:
    words = [*map(str, photos), *(f"--{name.replace('_', '-')}={value}" for name, value in given.items())]
    return run_command(parse, words, "parse")


def test_state_dict_is_the_public_one(network: FaceParser) -> None:
    state = network.state_dict()
    assert len(state) == 191 and sum(v.numel() for k, v in state.items() if v.is_floating_point()) == 13_313_088
    shapes = {
        "cp.resnet.conv1.weight": (64, 3, 7, 7),
        "cp.resnet.layer3.0.downsample.0.weight": (256, 128, 1, 1),
        "cp.arm16.conv_atten.weight": (128, 128, 1, 1),
        "cp.conv_avg.conv.weight": (128, 512, 1, 1),
        "ffm.conv1.weight": (64, 256, 1, 1),
        "conv_out.conv_out.weight": (19, 256, 1, 1),
        "conv_out32.conv.bn.running_var": (64,),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_loading_is_strict(network: FaceParser, weights: Path, tmp_path: Path) -> None:
    loaded = load_face_parser(weights)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    assert torch.equal(loaded(image), network(image)) and not any(p.requires_grad for p in loaded.parameters())
    state = network.state_dict()
    del state["ffm.conv1.weight"]
    state["other"] = torch.zeros(1)
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=r"(?s)wrong.pth does not fit FaceParser.*ffm.conv1.weight.*other"):
        load_face_parser(tmp_path / "wrong.pth")
    for text in ("no weights", "background"):  # the second begins with a letter that means something in a pickle
        (tmp_path / "text.pth").write_text(text)
        with pytest.raises(ValueError, match="text.pth: expected a state_dict"):
            load_face_parser(tmp_path / "text.pth")
    with pytest.raises(FileNotFoundError, match="absent.pth: no such file"):
        load_face_parser(tmp_path / "absent.pth")


def test_channels_come_out_in_our_order(network: FaceParser) -> None:
    """A network that answers one of its own classes everywhere gives that class's id in FACE_CLASSES."""
    assert sorted(FILE_CLASSES) == sorted(FACE_CLASSES)
    photo = np.full((40, 60, 3), 90, np.uint8)
    head = network.conv_out.conv_out
    before = head.weight.detach().clone()
    try:
        for k, name in enumerate(FILE_CLASSES):
            with torch.no_grad():
                head.weight.fill_(-1)  # its input is not negative (ReLU)
                head.weight[k] = 1
            assert (network.parse(photo, 64) == FACE_CLASSES.index(name)).all(), name
    finally:
        with torch.no_grad():
            head.weight.copy_(before)


@pytest.mark.parametrize("shape", [(33, 70), (200, 50), (64, 64)])
def test_labels_have_the_photo_s_size(network: FaceParser, shape: tuple[int, int]) -> None:
    seen = []
    hook = network.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[2:])))
    labels = network.parse(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8), 48)
    hook.remove()
    assert labels.shape == shape and labels.dtype == np.uint8 and labels.max() < 19
    assert min(seen[0]) == 48 and max(seen[0]) == round(48 * max(shape) / min(shape))


def test_bad_photos_are_named(network: FaceParser) -> None:
    with pytest.raises(ValueError, match="photo: expected"):
        network.parse(np.zeros((20, 20), np.uint8))
    with pytest.raises(ValueError, match="photo: expected"):
        network.parse(np.zeros((20, 20, 3)))
    with pytest.raises(ValueError, match="size: expected at least 32 pixels, got 8"):
        network.parse(np.zeros((20, 20, 3), np.uint8), 8)
    with pytest.raises(ValueError, match="images: expected shape"):
        network(torch.zeros(1, 3, 31, 64))


def test_command_writes_a_data_set(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(draw("face", 1, (80, 64))[0]).save(photos / "one.jpg")
    turned = Image.fromarray(draw("face", 2, (64, 96))[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rows are stored as columns
    turned.save(photos / "two.jpg", exif=exif)
    single = tmp_path / "three.png"
    Image.fromarray(draw("face", 3, (200, 100))[0]).save(single)
    out = tmp_path / "out"
    assert run([photos, single], weights=weights, out=out, size=64, save_size=64) in (0, 1)
    sizes = {"one": (64, 80), "two": (64, 96), "three": (64, 128)}  # width, height: upright, reduced to 64
    for stem, size in sizes.items():
        labels = Image.open(out / "labels" / f"{stem}.png")
        assert labels.mode == "P" and labels.size == size and np.asarray(labels).max() < 19
        assert Image.open(out / "images" / f"{stem}.png").size == size
        assert Image.open(out / "overlay" / f"{stem}.png").size == size
    assert (out / "classes.txt").read_text().split() == list(FACE_CLASSES)
    source = open_source(out, "folder", "all")
    assert [source.read(i).name for i in range(len(source))] == ["one", "three", "two"]
    assert "three.png (64 x 128): " in capsys.readouterr().out


def test_photos_as_people_have_them(weights: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    Image.new("RGBA", (40, 48), (90, 90, 90, 0)).save(touched(photos / "cut.PNG"))
    Image.fromarray(np.tile(np.linspace(0, 65535, 48).astype(np.uint16), (40, 1))).save(touched(photos / "x-ray.tif"))
    Image.fromarray(draw("face", 1, 48)[0]).save(touched(photos / "friends" / "one.jfif"), "JPEG")
    touched(photos / "._one.jpg").write_bytes(b"")
    touched(photos / "clip.mov").write_bytes(b"")
    out = photos / "faces"
    for _ in range(2):  # what was written is not read again
        with pytest.warns(UserWarning, match=r"photos: 1 file is left over \(1 not .*: photos/clip.mov\)"):
            assert run([photos], weights=weights, out=out, size=32) in (0, 1)
        found = sorted(path.relative_to(out).as_posix() for path in (out / "images").rglob("*.png"))
        assert found == ["images/cut.png", "images/friends/one.png", "images/x-ray.png"]
    assert (np.asarray(Image.open(out / "images" / "cut.png")) == 255).all()
    ramp = np.asarray(Image.open(out / "images" / "x-ray.png"))[0, :, 0]
    assert np.array_equal(ramp, np.round(np.linspace(0, 255, 48)))
    assert open_source(out, "folder").names() == ["cut", "friends/one", "x-ray"]


def touched(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_command_goes_on_after_a_bad_photo(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    Image.fromarray(draw("face", 1, 64)[0]).save(tmp_path / "good.png")
    out = tmp_path / "out"
    assert run([tmp_path], weights=weights, out=out, size=32) == 1
    assert "bad.jpg: not a readable image" in capsys.readouterr().err
    assert [p.name for p in (out / "labels").iterdir()] == ["good.png"]


def test_bad_arguments_are_named_before_any_work(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(draw("face", 1, 32)[0]).save(tmp_path / folder / "x.png")
    out = tmp_path / "out"
    for given, error, message in (
        ({"photos": [tmp_path / "absent.jpg"]}, FileNotFoundError, "absent.jpg: no such photo"),
        ({"photos": [tmp_path / "empty"]}, FileNotFoundError, "empty: holds no picture"),
        ({"photos": [tmp_path / "a", tmp_path / "b"]}, ValueError, "photos: expected different names"),
        ({"photos": [tmp_path / "a"], "size": 16}, ValueError, "--size: expected at least 32"),
        ({"photos": [tmp_path / "a"], "save_size": 16}, ValueError, "--save-size: expected at least 32"),
        ({"photos": [tmp_path / "a"], "weights": tmp_path / "none.pth"}, FileNotFoundError, "none.pth: no such file"),
    ):
        with pytest.raises(error, match=message):
            run(**{"weights": weights, "out": out, **given})
        assert not out.exists()


def test_public_weights_parse_real_faces(data_folder: Path, tmp_path: Path) -> None:
    path = os.environ.get("MIXSYN_FAST_FACE_PARSER")
    if not path or not Path(path).is_file():
        pytest.skip("needs the public weights: set MIXSYN_FAST_FACE_PARSER to 79999_iter.pth")
    network = load_face_parser(path)
    source = open_source(data_folder / "celebamask_hq", "folder", "val", classes=19)
    read = [source.read(i) for i in range(12)]
    counts = sum(
        confusion(torch.from_numpy(network.parse(s.image)).long(), torch.from_numpy(s.labels.astype(np.int64)), 19)
        for s in read
    )
    assert float(counts.diagonal().sum() / counts.sum()) > 0.94
    found = iou(counts)
    assert float(found.nanmean()) > 0.7
    for name in ("l_eye", "r_eye", "l_brow", "r_brow"):  # left and right are those of the data set
        assert found[FACE_CLASSES.index(name)] > 0.5
