"""load_published: complete or not at all, spectral norm folded, Config from shapes, unused keys by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import published as pub
import pytest
import torch
from mixsyn_fast.models import clade, sean, spade
from mixsyn_fast.models.checkpoints import read_state
from mixsyn_fast.models.face_parser import load_face_parser
from mixsyn_fast.models.feature_networks import load_feature_network, lpips_heads
from mixsyn_fast.models.metrics import InceptionFeatures
from mixsyn_fast.models.mixsyn.model import FILE as MIXSYN
from mixsyn_fast.models.stylefusion import load_fusion_net
from torch import Tensor, nn

from mixsyn_fast import models
from mixsyn_fast.region_map import RegionMap

K = 5


def published_sean(size: tuple[int, int] = (64, 64)) -> nn.Module:
    """Return the published form with spectral norm whose u and v are those after some training steps."""
    torch.manual_seed(2)
    model = pub.randomise(pub.SEANGenerator(4, K, size, style=12, hidden=8, width=4)).double()
    labels = pub.onehot(pub.blobs(1, K, *size), K, torch.float64)
    with torch.no_grad():
        for _ in range(2):
            model(labels, torch.randn(1, 3, *size, dtype=torch.float64))
    return model.eval()


def save(model: nn.Module, path: Path) -> Path:
    torch.save(model.state_dict(), path)
    return path


def same(ours: nn.Module, theirs: nn.Module, size: tuple[int, int] = (64, 64)) -> None:
    labels = pub.blobs(2, K, *size)
    onehot = pub.onehot(labels, K, torch.float64)
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.manual_seed(3)
        expected = theirs.pre_tanh(onehot, theirs.Zencoder(image, onehot))
        torch.manual_seed(3)
        result = ours.forward_features(RegionMap(labels, K), image, noise="published")
    assert (result - expected).abs().max() <= 1e-11 * expected.abs().max()


def test_sean_file_folded(tmp_path: Path) -> None:
    theirs = published_sean()
    ours = models.load_published(save(theirs, tmp_path / "latest_net_G.pth"), image_size=64)
    assert ours.config == sean.Config(K, 4, 64, hidden=8, style_length=12, encoder_width=4)
    assert not ours.training
    assert not any("_orig" in name for name in ours.state_dict())
    # the file is float64; the model that load_published builds is float32
    exact = models.load_published(tmp_path / "latest_net_G.pth", models.SEANGenerator(ours.config).double().eval())
    same(exact, theirs)


def test_spectral_norm_kept_for_training(tmp_path: Path) -> None:
    theirs = published_sean()
    path = save(theirs, tmp_path / "g.pth")
    ours = models.load_published(path, image_size=64, fold_spectral_norm=False)
    assert ours.config.spectral_norm
    expected = {n for n in theirs.state_dict() if ".Spade.param_free_norm." not in n}
    assert {n for n in ours.state_dict() if ".Spade.param_free_norm." not in n} == expected
    exact = models.load_published(path, models.SEANGenerator(ours.config).double().eval())
    same(exact, theirs)
    # round trip: what we save while training loads again, into both forms, and into the published form
    again = save(exact, tmp_path / "again.pth")
    same(models.load_published(again, models.SEANGenerator(ours.config).double().eval()), theirs)
    folded = sean.Config(**(vars(ours.config) | {"spectral_norm": False}))
    same(models.load_published(again, models.SEANGenerator(folded).double().eval()), theirs)
    state = exact.state_dict()
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all(".Spade.param_free_norm." in name for name in missing)


def test_plain_weights_round_trip(tmp_path: Path) -> None:
    ours = models.load_published(save(published_sean(), tmp_path / "g.pth"), image_size=64)
    again = models.load_published(save(ours, tmp_path / "plain.pth"), image_size=64)
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in ours.state_dict().items())


def test_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    theirs = published_sean()
    safetensors.save_file({n: v.contiguous() for n, v in theirs.state_dict().items()}, tmp_path / "g.safetensors")
    a = models.load_published(tmp_path / "g.safetensors", image_size=64)
    b = models.load_published(save(theirs, tmp_path / "g.pth"), image_size=64)
    assert all(torch.equal(v, b.state_dict()[n]) for n, v in a.state_dict().items())


@pytest.mark.parametrize("vae", [False, True])
def test_spade_and_clade_configs_from_shapes(tmp_path: Path, vae: bool) -> None:
    z_dim = 8 if vae else 0
    theirs = pub.SPADEGenerator(4, K + 1, (64, 128), hidden=8, z_dim=z_dim)
    ours = models.load_published(save(theirs, tmp_path / "s.pth"), image_size=128, aspect_ratio=2.0, edges=True)
    expected = spade.Config(K, 4, 128, 2.0, edges=True, hidden=8, use_vae=vae, z_dim=z_dim or 256)
    assert ours.config == expected
    theirs = pub.SPADEGenerator(4, K, (128, 128), hidden=8, norm="instance", upsampling="most", ks=5, z_dim=z_dim)
    ours = models.load_published(save(theirs, tmp_path / "s.pth"), image_size=128)
    assert (ours.config.norm, ours.config.num_upsampling_layers, ours.config.kernel_size) == (
        "instance",
        "most",
        5,
    )
    assert ours.config.ngf == 4
    theirs = pub.CLADEGenerator(4, K, (64, 64), z_dim=z_dim)
    ours = models.load_published(save(theirs, tmp_path / "c.pth"), image_size=64)
    assert ours.config == clade.Config(K, 4, 64, use_vae=vae, z_dim=z_dim or 256)


def test_positional_clade_file(tmp_path: Path) -> None:
    """CLADE-ICPE: the positional convolutions are where the published file has them, and compute what they do there."""
    theirs = pub.randomise(pub.CLADEGenerator(4, K, (64, 64), positional=True)).eval()
    ours = models.load_published(save(theirs, tmp_path / "c.pth"), image_size=64).double().eval()
    assert ours.config.positional
    segmap, distance = pub.onehot(pub.blobs(1, K, 64, 64), K, torch.float64), torch.randn(1, 2, 64, 64).double()
    with torch.no_grad():
        expected = theirs.double().pre_tanh(segmap, distance)
        difference = ours.forward_features(segmap, distance=distance) - expected
    assert difference.abs().max() <= 1e-4 * expected.abs().max()  # the file's weights are float32, spectral norm folded
    with pytest.raises(ValueError, match="distance: expected a tensor"):
        ours(segmap)


def test_encoder_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = pub.ConvEncoder(4, 8).eval()
    ours = models.load_published(save(theirs, tmp_path / "latest_net_E.pth"))
    assert ours.config == spade.EncoderConfig(4, 8, 256)
    image = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours(image), theirs(image), strict=True))


def broken(state: dict[str, Tensor], case: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return a damaged state and what the message must name."""
    state = dict(state)
    if case == "missing":
        del state["up_1.ace_0.fc_mu3.weight"], state["conv_img.bias"]
        return state, ["2 missing", "up_1.ace_0.fc_mu3.weight", "conv_img.bias"]
    if case == "unexpected":
        state["head_0.extra.weight"] = torch.zeros(1)
        return state, ["1 unexpected", "head_0.extra.weight"]
    if case == "shape":
        state["up_2.conv_0.bias"] = torch.zeros(3)
        return state, ["up_2.conv_0.bias: expected (8,), got (3,)"]
    if case == "no u":
        del state["up_0.conv_1.weight_u"]
        return state, ["missing", "up_0.conv_1.weight", "up_0.conv_1.weight_orig"]
    state["up_0.conv_1.weight_u"] = state["up_0.conv_1.weight_u"] * float("nan")
    return state, ["up_0.conv_1.weight_orig", "damaged"]


@pytest.mark.parametrize("case", ["missing", "unexpected", "shape", "no u", "nan"])
def test_nothing_is_half_loaded(tmp_path: Path, case: str) -> None:
    state, words = broken(published_sean().state_dict(), case)
    torch.save(state, tmp_path / "bad.pth")
    model = models.SEANGenerator(sean.Config(K, 4, 64, hidden=8, style_length=12, encoder_width=4))
    before = {n: v.clone() for n, v in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        models.load_published(tmp_path / "bad.pth", model)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_batch_counters_may_come_or_go(tmp_path: Path) -> None:
    theirs = published_sean()
    state = {n: v for n, v in theirs.state_dict().items() if not n.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    ours = models.load_published(tmp_path / "old.pth", image_size=64)
    assert ours.config.label_nc == K


def test_file_without_weight_v(tmp_path: Path) -> None:
    theirs = published_sean()
    state = {n: v for n, v in theirs.state_dict().items() if not n.endswith("weight_v")}
    folded = models.fold_spectral_norm(state)
    weight, u = state["up_0.conv_1.weight_orig"], state["up_0.conv_1.weight_u"]
    sigma = (weight.flatten(1).t() @ u).norm()
    assert torch.allclose(folded["up_0.conv_1.weight"], weight / sigma)


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, tmp_path / "nested.pth")
    with pytest.raises(ValueError, match="one plain state_dict"):
        models.load_published(tmp_path / "nested.pth")
    torch.save({"a.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not a SPADE, CLADE, SEAN or StyleGAN2"):
        models.load_published(tmp_path / "other.pth")

    torch.save({"a": Path("x")}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match=r"code.pth: expected .*, got a file that names pathlib.\w+: only tensors in plain"):
        models.load_published(tmp_path / "code.pth")
    path = save(published_sean(), tmp_path / "g.pth")
    with pytest.raises(TypeError, match="image_size"):
        models.load_published(path, config=sean.Config(), image_size=64)
    with pytest.raises(TypeError, match="model is given"):
        models.load_published(path, nn.Identity(), image_size=64)


PAGE = b"\n<!DOCTYPE html>\n<html><head><title>weights.pth</title></head><body>Sign in</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 178257920\n"
READERS: dict[str, Callable[[Path], object]] = {
    "published.pth": models.load_published,
    "published.safetensors": models.load_published,
    "features.pth": load_feature_network,
    "features.ckpt": load_feature_network,
    "heads.ckpt": lpips_heads,
    "parser.pth": load_face_parser,
    "fusion.pt": load_fusion_net,
    "model.safetensors": lambda path: MIXSYN.load(path, lambda config: {}),
    "inception.pt": InceptionFeatures,
    "weights.pth": read_state,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (PAGE, r"got a web page \(HTML\): .* download the file itself"),
        (b"\xef\xbb\xbf<!-- saved -->\n<HTML lang='en'>", r"got a web page \(HTML\)"),
        (POINTER, "got a git-lfs pointer, which stands for a file of 178,257,920 bytes: .*git lfs pull"),
        (b"", "got an empty file: download it again"),
        (b"PK\x03\x04" + bytes(300), "got an archive that ends early, after 304 bytes: .*download it again"),
        (b"no weights", "got"),
        (bytes(range(256)), "got"),
    ],
    ids=["page", "other page", "lfs", "empty", "cut off", "text", "bytes"],
)
def test_what_downloads_leave_in_place_of_weights(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    """Our sentence: the file, what it is, what to do. No word of torch's about weights_only."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        READERS[name](path)
    message = str(caught.value)
    assert message.startswith(f"{path}: expected ") and "weights_only" not in message and "\n" not in message, message


def test_safetensors_that_end_early(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"a": torch.zeros(1000), "b": torch.ones(3)}, whole)
    size = whole.stat().st_size
    assert len(read_state(whole)) == 2
    for length in (size - 1, size - 2000, 40):
        part = tmp_path / "part.safetensors"
        part.write_bytes(whole.read_bytes()[:length])
        with pytest.raises(ValueError, match=f"a safetensors file that ends early, after {length:,} of [0-9,]+ bytes"):
            read_state(part)
