"""MixSyn in use: compositions equal a plain pass, edits touch what they name only, files come back or say why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mixsyn_fast.models import model_file
from mixsyn_fast.models.mixsyn import model as module
from mixsyn_fast.models.mixsyn.compositions import user_composition
from mixsyn_fast.models.mixsyn.config import Config, StructureConfig, StyleConfig
from mixsyn_fast.models.mixsyn.model import Composed, Editor, MixSyn
from mixsyn_fast.models.mixsyn.structure import StructureGenerator
from mixsyn_fast.models.mixsyn.style import StyleGenerator
from mixsyn_fast.models.pictures.picture import Picture, fit
from mixsyn_fast.models.settings import to_dict
from mixsyn_fast.models.sheets import to_uint8
from mixsyn_fast.models.training import trained
from mixsyn_fast.models.training.checkpoint import save_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mixsyn_fast import RegionMap

CLASSES = ("wall", "window", "door", "shop", "sky")
SIZE = (32, 32)
CONFIG = Config(
    classes=CLASSES,
    image_size=SIZE,
    structure=StructureConfig(width=4, code_channels=8, code_size=8, decoder_width=8, decoder_smallest=4),
    style=StyleConfig(code_length=8, encoder_width=4, encoder_largest=8, encoder_halvings=2, width=4, largest=8, hidden=4),
)


def picture(name: str, *regions: str, size: tuple[int, int] = SIZE, seed: int | None = None) -> Picture:
    """Vertical stripes of the regions, and below them a stripe of no region."""
    random = np.random.default_rng(sum(map(ord, name)) if seed is None else seed)
    labels = np.full(size, -1, np.int32)
    for at, region in enumerate(regions):
        labels[: -size[0] // 8, at * size[1] // len(regions) : (at + 1) * size[1] // len(regions)] = CLASSES.index(region)
    return Picture(random.integers(0, 256, (*size, 3), np.uint8), labels, name)


A = picture("a", "wall", "window", "door")
B = picture("b", "window", "shop", "wall")
C = picture("c", "sky", "door", "wall", "window")


def networks(config: Config = CONFIG, seed: int = 0) -> tuple[StructureGenerator, StyleGenerator]:
    torch.manual_seed(seed)
    made = StructureGenerator(config), StyleGenerator(config)
    for network in made:
        for parameter in network.parameters():  # norms and biases of zero would hide a swapped one
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return made


@pytest.fixture(scope="module")
def mixsyn() -> MixSyn:
    return MixSyn(*networks(), CONFIG)


def tensors(*pictures: Picture) -> tuple[Tensor, RegionMap]:
    image = torch.stack([torch.from_numpy(p.image) for p in pictures]).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels = torch.stack([torch.from_numpy(p.labels) for p in pictures])
    return image, RegionMap(labels, len(CLASSES), ignore_index=-1)


class Calls:
    """Counts what the encoders are asked for."""

    def __init__(self, mixsyn: MixSyn, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, int, tuple[int, ...]]] = []
        for name in ("structure", "style"):
            network = getattr(mixsyn, name)
            monkeypatch.setattr(network, "encode", self._counting(name, network.encode))

    def _counting(self, name: str, encode: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counting(*args: object) -> Tensor:
            *_, regions, which = args
            assert isinstance(regions, RegionMap) and isinstance(which, tuple)
            self.seen.append((name, regions.batch_size, which))
            return encode(*args)

        return counting

    def regions(self, name: str) -> list[str]:
        assert all(batch == 1 for _, batch, _ in self.seen)
        return sorted(CLASSES[k] for n, _, which in self.seen if n == name for k in which)


# --- compose --------------------------------------------------------------------------------------------------------------


def test_a_composition_is_one_plain_pass_through_the_networks(mixsyn: MixSyn) -> None:
    made = mixsyn.compose({"window": A, "shop": B}, base=C)
    image, regions = tensors(A, B, C)
    composition = user_composition({"window": 0, "shop": 1}, CLASSES, regions.areas() > 0, base=2)
    with torch.no_grad():
        soft = mixsyn.structure.decode(composition.gather(mixsyn.structure.encode(regions)))
        style = composition.gather(mixsyn.style.encode(image, regions))
        expected = mixsyn.style(RegionMap.soft(soft), style)
    torch.testing.assert_close(torch.from_numpy(made.composition), soft[0], atol=1e-5, rtol=1e-4)
    assert np.abs(made.image.astype(int) - to_uint8(expected)[0]).max() <= 1
    assert np.array_equal(made.labels, made.composition.argmax(0))
    assert made.image.shape == (*SIZE, 3) and made.image.dtype == np.uint8
    assert made.composition.shape == (len(CLASSES), *SIZE) and made.composition.dtype == np.float32
    assert made.labels.dtype == np.int32
    np.testing.assert_allclose(made.composition.sum(0), 1, atol=1e-5)


def test_a_base_alone_is_its_reconstruction(mixsyn: MixSyn) -> None:
    made = mixsyn.compose({}, base=A)
    codes = mixsyn.encode(A, CLASSES)
    soft = mixsyn.decode(codes.structure)
    assert torch.equal(torch.from_numpy(made.composition), soft)
    assert np.array_equal(made.image, to_uint8(mixsyn.generate(soft, codes.style)[None])[0])
    assert made.sources == (A,) and made.table == {"wall": 0, "window": 0, "door": 0}
    image, regions = tensors(A)
    with torch.no_grad():
        torch.testing.assert_close(codes.structure, mixsyn.structure.encode(regions)[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(codes.style, mixsyn.style.encode(image, regions)[0], atol=1e-5, rtol=1e-4)


def test_the_table_names_each_source_once_and_the_base_first(mixsyn: MixSyn) -> None:
    made = mixsyn.compose({"shop": B, "window": A, "wall": B}, base=C)
    assert made.sources == (C, B, A)
    assert list(made.table.items()) == [("door", 0), ("sky", 0), ("shop", 1), ("window", 2), ("wall", 1)]


def test_a_base_of_which_nothing_is_used_is_no_source(mixsyn: MixSyn) -> None:
    made = mixsyn.compose({"wall": B, "window": B, "door": C}, base=A)
    assert made.sources == (B, C)
    alone = mixsyn.compose({"wall": B, "window": B, "door": C})
    assert np.array_equal(made.image, alone.image) and made.table == alone.table


def test_an_equal_picture_is_one_source(mixsyn: MixSyn) -> None:
    twin = Picture(A.image.copy(), A.labels.copy(), "twin")
    assert mixsyn.compose({"window": A, "door": twin}).sources == (A,)
    other = Picture(A.image, B.labels, "other")
    assert mixsyn.compose({"window": A, "shop": other}).sources == (A, other)
    repainted = Picture(255 - A.image, A.labels, "repainted")
    assert mixsyn.compose({"window": A, "door": repainted}).sources == (A, repainted)


def test_encoders_run_for_what_is_used_only(mixsyn: MixSyn, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(mixsyn, monkeypatch)
    mixsyn.compose({"window": A, "shop": B}, base=C)
    assert calls.regions("structure") == calls.regions("style") == ["door", "shop", "sky", "wall", "window"]
    calls.seen.clear()
    mixsyn.compose({"door": A})
    assert calls.regions("structure") == calls.regions("style") == ["door"]


def test_absent_regions_have_zero_codes(mixsyn: MixSyn) -> None:
    codes = Editor(mixsyn, None, {"door": A, "shop": B}).codes
    for at, name in enumerate(CLASSES):
        present = name in ("door", "shop")
        assert bool(codes.structure[at].any()) == bool(codes.style[at].any()) == present
    assert not mixsyn.encode(A, ["shop"]).style.any()


def test_every_source_is_encoded_by_one_grouped_call_per_network(mixsyn: MixSyn, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(mixsyn, monkeypatch)
    editor = mixsyn.editor(C, {"window": A, "shop": B, "wall": B})
    # of C door and sky, of A window, of B shop and wall
    expected = [(name, 1, which) for which in ((2, 4), (1,), (0, 3)) for name in ("structure", "style")]
    assert sorted(calls.seen) == sorted(expected)
    calls.seen.clear()
    mixsyn.compose({"window": A, "shop": B, "wall": B}, base=C)
    assert sorted(calls.seen) == sorted(expected)
    calls.seen.clear()
    editor.full_pass()
    assert sorted(calls.seen) == sorted(expected)
    calls.seen.clear()
    editor.replace({"window": B, "door": A, "wall": A})
    assert sorted(calls.seen) == sorted((name, 1, which) for which in ((1,), (0, 2)) for name in ("structure", "style"))


def test_codes_depend_on_what_else_is_composed_in_their_rounding_alone(mixsyn: MixSyn) -> None:
    alone = mixsyn.encode(A, ["window"])
    many = mixsyn.encode(A, CLASSES)
    found = [(many.structure[1], many.style[1])]
    for editor in (Editor(mixsyn, A), Editor(mixsyn, C, {"window": A, "wall": B}), Editor(mixsyn, None, {"window": A})):
        found.append((editor.codes.structure[1], editor.codes.style[1]))
    found.append((alone.structure[0], mixsyn.styles(A, ["door", "window"])[1]))
    for structure, style in found:
        torch.testing.assert_close(structure, alone.structure[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(style, alone.style[0], atol=1e-5, rtol=1e-4)


def test_sources_of_other_sizes_are_fitted(mixsyn: MixSyn) -> None:
    large = picture("large", "sky", "shop", size=(96, 64), seed=3)
    made = mixsyn.compose({"sky": large}, base=A)
    assert made.image.shape == (*SIZE, 3)
    fitted = mixsyn.fitted(large)
    assert fitted.labels.shape == SIZE and mixsyn.fitted(A) is A
    assert made.sources[1].labels.shape == SIZE
    again = mixsyn.compose({"sky": fitted}, base=A)
    assert np.array_equal(made.image, again.image)


@pytest.mark.filterwarnings("error")
def test_arrays_may_be_read_only_views(mixsyn: MixSyn) -> None:
    image, labels = np.flip(A.image, 1).copy()[:, ::-1], np.asfortranarray(A.labels)
    image.flags.writeable = labels.flags.writeable = False
    assert np.array_equal(mixsyn.compose({}, Picture(image, labels, "a")).image, mixsyn.compose({}, A).image)


def test_regions_of_a_picture(mixsyn: MixSyn) -> None:
    assert mixsyn.regions_of(C) == ("wall", "window", "door", "sky")
    labels = np.full(SIZE, -1, np.int32)
    assert mixsyn.regions_of(Picture(A.image, labels, "none")) == ()


@pytest.mark.parametrize(
    "regions, base, words",
    [
        ({}, None, "at least one region or a base, got none"),
        ({"roof": A}, C, "wall, window, door, shop, sky, got 'roof'"),
        ({"shop": A}, C, "shop: a at 32 x 32 pixels has no such region; it has wall, window, door"),
        ({}, Picture(A.image, np.full(SIZE, -1, np.int32), "bare"), "base: bare at 32 x 32 pixels has no region"),
        ({"wall": Picture(A.image, np.full(SIZE, -1, np.int32), "bare")}, None, "bare at 32 x 32 pixels .* it has none"),
        ({"wall": Picture(A.image, A.labels + 3, "high")}, None, "high: labels: expected classes 0 to 4 or -1, got 2 to 5"),
        ({"wall": Picture(A.image, A.labels - 1, "low")}, None, "low: labels: .* got -2 to 1"),
    ],
)
def test_what_cannot_be_composed_says_why(
    mixsyn: MixSyn, regions: dict[str, Picture], base: Picture | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        mixsyn.compose(regions, base)
    with pytest.raises(ValueError, match=words):
        mixsyn.editor(base, regions)


def test_a_number_is_no_picture(mixsyn: MixSyn) -> None:
    with pytest.raises(TypeError, match="expected a Picture .see read_picture. or a path, got int"):
        mixsyn.compose({"wall": 3})  # type: ignore[dict-item]


def test_encode_needs_a_region_that_there_is(mixsyn: MixSyn) -> None:
    with pytest.raises(ValueError, match="at least one region, got none"):
        mixsyn.encode(A, [])
    with pytest.raises(ValueError, match="got 'roof'"):
        mixsyn.styles(A, ["roof"])


def test_networks_are_in_eval_mode_without_gradients(mixsyn: MixSyn) -> None:
    for network in (mixsyn.structure, mixsyn.style):
        assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert not mixsyn.encode(A, ["wall"]).style.requires_grad


def test_networks_in_training_stay_as_they_are() -> None:
    structure, style = networks()
    before = {name: value.clone() for name, value in structure.state_dict().items()}
    MixSyn(structure, style, CONFIG).compose({}, base=A)
    assert structure.training and all(p.requires_grad for p in structure.parameters())
    assert before.keys() == structure.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in structure.state_dict().items())


# --- edits ----------------------------------------------------------------------------------------------------------------


def test_an_edit_keeps_all_other_codes_bit_for_bit(mixsyn: MixSyn, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = mixsyn.editor(C)
    first, codes = editor.current, editor.codes
    copy = codes.structure.clone()
    calls = Calls(mixsyn, monkeypatch)
    edited = editor.replace({"window": A, "shop": B})
    assert calls.regions("structure") == calls.regions("style") == ["shop", "window"]
    assert edited is editor.current and edited.changed == edited.encoded == ("window", "shop")
    for at, name in enumerate(CLASSES):
        kept = name not in edited.changed
        assert torch.equal(editor.codes.structure[at], codes.structure[at]) == kept
        assert torch.equal(editor.codes.style[at], codes.style[at]) == kept
    assert torch.equal(codes.structure, copy)  # codes of earlier states are not written to
    assert not np.array_equal(first.image, edited.image)
    assert {name: edited.sources[at].name for name, at in edited.table.items()} == {
        "wall": "c", "door": "c", "sky": "c", "window": "a", "shop": "b",
    }  # fmt: skip


def close(one: Composed, two: Composed) -> None:
    """Equal to rounding."""
    np.testing.assert_allclose(one.composition, two.composition, atol=1e-5)
    assert np.abs(one.image.astype(int) - two.image).max() <= 1


def test_an_edit_is_what_composing_at_once_makes(mixsyn: MixSyn) -> None:
    editor = mixsyn.editor(C)
    editor.replace({"window": A})
    edited = editor.replace({"door": A, "shop": B})
    at_once = mixsyn.compose({"window": A, "door": A, "shop": B}, base=C)
    close(edited, at_once)
    assert edited.table == at_once.table and edited.sources == at_once.sources


def test_a_full_pass_makes_the_same_anew(mixsyn: MixSyn, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = mixsyn.editor(C)
    edited = editor.replace({"window": A})
    codes = editor.codes
    calls = Calls(mixsyn, monkeypatch)
    full = editor.full_pass()
    assert calls.regions("style") == calls.regions("structure") == ["door", "sky", "wall", "window"]
    close(full, edited)
    assert set(full.changed) == set(full.encoded) == {"door", "sky", "wall", "window"}
    assert editor.current is edited and editor.codes is codes


def test_the_first_picture_comes_back_bit_for_bit(mixsyn: MixSyn, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = mixsyn.editor(C)
    first = editor.current
    editor.replace({"window": A, "shop": B})
    editor.replace({"wall": B, "sky": None})
    editor.replace({"door": A})
    again = Picture(C.image.copy(), C.labels.copy(), "c, read again")
    calls = Calls(mixsyn, monkeypatch)
    back = editor.replace({"window": again, "wall": again, "door": again, "sky": again, "shop": None})
    assert not calls.seen and back.encoded == () and set(back.changed) == {"window", "wall", "door", "sky", "shop"}
    assert np.array_equal(back.image, first.image) and np.array_equal(back.composition, first.composition)
    assert back.sources == (C,) and back.table == first.table  # an equal picture is the one that there was


def test_codes_are_remembered_by_picture_and_region(mixsyn: MixSyn, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = mixsyn.editor(C)
    editor.replace({"window": A})
    codes = editor.codes
    editor.replace({"window": B})
    calls = Calls(mixsyn, monkeypatch)
    back = editor.replace({"window": Picture(A.image.copy(), A.labels.copy(), "twin"), "door": A})
    assert back.encoded == ("door",) and calls.regions("style") == calls.regions("structure") == ["door"]
    assert torch.equal(editor.codes.structure[1], codes.structure[1])
    other = Picture(255 - A.image, A.labels, "a")  # the same labels and name, other pixels
    assert editor.replace({"window": other}).encoded == ("window",)
    assert not torch.equal(editor.codes.style[1], codes.style[1])


def test_pictures_may_die_between_edits(mixsyn: MixSyn) -> None:
    """Codes are not mistaken for those of a picture that had the same address."""
    editor = mixsyn.editor(C)
    for seed in range(12):
        edited = editor.replace({"shop": picture("x", "shop", seed=seed)})
        assert edited.encoded == ("shop",)
        expected = mixsyn.styles(picture("x", "shop", seed=seed), ["shop"])[0]
        assert torch.equal(editor.codes.style[CLASSES.index("shop")], expected)


def test_a_region_that_comes_from_there_already_is_left_alone(mixsyn: MixSyn, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = mixsyn.editor(C)
    first, calls = editor.current, Calls(mixsyn, monkeypatch)
    edited = editor.replace({"window": Picture(C.image.copy(), C.labels.copy(), "c"), "shop": None})
    assert edited.changed == () and not calls.seen
    assert np.array_equal(edited.image, first.image)


def test_a_removed_region_has_zero_codes(mixsyn: MixSyn) -> None:
    editor = mixsyn.editor(C)
    edited = editor.replace({"window": None})
    assert edited.changed == ("window",) and "window" not in edited.table
    assert not editor.codes.structure[1].any() and not editor.codes.style[1].any()
    without = Picture(C.image, np.where(C.labels == 1, -1, C.labels).astype(np.int32), "c without window")
    for name in ("wall", "door", "sky"):  # other regions do not see that it is gone
        own = mixsyn.encode(without, [name]).style[0]
        torch.testing.assert_close(own, editor.codes.style[CLASSES.index(name)], atol=1e-5, rtol=1e-4)


def test_an_edit_that_fails_changes_nothing(mixsyn: MixSyn) -> None:
    editor = mixsyn.editor(C)
    edited = editor.replace({"window": A})
    codes = editor.codes
    for regions, words in (
        ({}, "at least one region to replace"),
        ({"shop": A}, "shop: a at 32 x 32 pixels has no such region"),
        ({"roof": A}, "got 'roof'"),
        ({"wall": A, "roof": None}, "got 'roof'"),
        (dict.fromkeys(("wall", "window", "door", "sky")), "at least one region to stay"),
    ):
        with pytest.raises(ValueError, match=words):
            editor.replace(regions)
    assert editor.current is edited and editor.codes is codes
    close(editor.full_pass(), edited)


def test_seconds_are_of_the_parts(mixsyn: MixSyn, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter((10.0, 11.0, 13.0, 17.0))
    editor = mixsyn.editor(C)
    monkeypatch.setattr(module, "now", lambda _: next(ticks))
    seconds = editor.replace({"window": A}).seconds
    assert (seconds.encode, seconds.decode, seconds.generate, seconds.total) == (1, 2, 4, 7)
    monkeypatch.undo()
    assert editor.full_pass().seconds.encode > 0


def test_drift_by_hand(mixsyn: MixSyn) -> None:
    editor = mixsyn.editor(C)
    labels = np.zeros(SIZE, np.int32)
    labels[:, :8] = 1  # window before: 8 columns of 32
    before = replace(editor.current, labels=labels, image=np.full((*SIZE, 3), 100, np.uint8))
    labels = np.zeros(SIZE, np.int32)
    labels[:, 8:16] = 1  # after: 8 other columns; together 16
    labels[0, 20:24] = 2  # 4 pixels outside are another region now
    image = np.full((*SIZE, 3), 100, np.uint8)
    image[:, :16] = 250
    image[1, 16] = (90, 100, 100)
    image[2, 16] = (100, 140, 100)
    after = replace(editor.current, labels=labels, image=image, changed=("window",))
    drift = editor.drift(before, after)
    outside = 32 * 16
    assert drift.outside == 0.5 and drift.relabelled_outside == 4 / outside
    assert drift.max_outside == 40 and drift.mean_outside == pytest.approx(50 / (3 * outside))
    assert drift.mean_inside == drift.max_inside == 150
    assert editor.drift(before, after, ("window",)) == drift
    everything = editor.drift(before, after, CLASSES)
    assert everything.outside == everything.mean_outside == everything.relabelled_outside == 0
    assert editor.drift(after, after).max_inside == 0


def test_drift_needs_what_it_compares(mixsyn: MixSyn) -> None:
    editor = mixsyn.editor(C)
    composed = mixsyn.compose({}, C)
    with pytest.raises(ValueError, match="names of the edited regions"):
        editor.drift(composed, composed)
    with pytest.raises(ValueError, match="got 'roof'"):
        editor.drift(composed, composed, ["roof"])
    small = replace(composed, image=composed.image[:16])
    with pytest.raises(ValueError, match="one size"):
        editor.drift(small, composed, ["wall"])
    assert editor.drift(composed, editor.current, ["wall"]).max_inside == 0


# --- files ----------------------------------------------------------------------------------------------------------------


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_saved_model_comes_back_exactly(mixsyn: MixSyn, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    mixsyn.save(path)
    mixsyn.save(path)  # replaces
    drawn = torch.get_rng_state()
    loaded = MixSyn.load(str(path))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert loaded.config == mixsyn.config and loaded.classes == CLASSES and loaded.size == SIZE
    assert not loaded.config.structure.spectral_norm and not loaded.config.style.spectral_norm
    assert same_weights(loaded.structure, mixsyn.structure) and same_weights(loaded.style, mixsyn.style)
    made, again = mixsyn.compose({"window": A}, C), loaded.compose({"window": A}, C)
    assert np.array_equal(made.image, again.image) and np.array_equal(made.composition, again.composition)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert not loaded.structure.training and loaded.device == torch.device("cpu")


def test_half_is_close_and_half_as_large(mixsyn: MixSyn, tmp_path: Path) -> None:
    mixsyn.save(tmp_path / "whole.safetensors")
    mixsyn.save(tmp_path / "half.safetensors", half=True)
    whole, half = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "half"))
    assert half < 0.7 * whole
    loaded = MixSyn.load(tmp_path / "half.safetensors")
    assert all(p.dtype == torch.float32 for p in loaded.style.parameters())
    made, again = mixsyn.compose({"window": A}, C), loaded.compose({"window": A}, C)
    np.testing.assert_allclose(made.composition, again.composition, atol=0.02)
    assert np.abs(made.image.astype(int) - again.image).max() <= 4


def test_a_weight_that_half_cannot_hold_is_said(tmp_path: Path) -> None:
    model = MixSyn(*networks(), CONFIG)
    weight = next(model.style.parameters())
    weight.data[(0,) * weight.dim()] = 1e6
    with pytest.raises(ValueError, match=r"float16 cannot hold style_generator\..*1e\+06"):
        model.save(tmp_path / "half.safetensors", half=True)
    assert not list(tmp_path.iterdir())


def test_spectral_norm_is_folded(tmp_path: Path) -> None:
    structure, style = networks()
    model = MixSyn(structure, style, CONFIG)
    assert any("u" == name.rpartition(".")[2] for name in structure.state_dict())
    assert not any(name.rpartition(".")[2] in "uv" for name in model.structure.state_dict())
    image, regions = tensors(A)
    with torch.no_grad():
        codes = structure.eval().encode(regions)
        torch.testing.assert_close(model.structure.encode(regions), codes, atol=1e-5, rtol=1e-4)
        own = style.eval().encode(image, regions)
        torch.testing.assert_close(model.style.encode(image, regions), own, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model.style(regions, own), style(regions, own), atol=1e-5, rtol=1e-4)


def altered(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> None:
    """Write a file anew after a change, its SHA-256 being right."""
    library = model_file._safetensors()
    with library.safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    values = load_file(path)
    metadata["sha256"] = model_file._digest(values)
    change(values, metadata)
    if "sha256" in metadata:
        metadata["sha256"] = model_file._digest(values)
    save_file(values, path, metadata)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t, m: t.pop("style_generator.conv_out.weight"), "1 missing"),
        (lambda t, m: t.update({"structure_generator.more": torch.zeros(2)}), "1 unexpected"),
        (lambda t, m: t.update({"other.more": torch.zeros(2)}), "other.more"),
        (lambda t, m: t.update({"style_generator.conv_out.weight": torch.zeros(2)}), "1 of another shape"),
        (lambda t, m: m.pop("format"), "format 'mixsyn_fast.mixsyn', got None"),
        (lambda t, m: m.update(format="sean"), "format 'mixsyn_fast.mixsyn', got 'sean'"),
        (lambda t, m: m.update(version="999"), "version '1', got '999'"),
        (lambda t, m: m.pop("config"), "expected the config of a MixSyn, got: 'config'"),
        (lambda t, m: m.update(config="{"), "expected the config of a MixSyn"),
        (lambda t, m: m.update(config=json.dumps({"flavour": 1})), "unknown flavour"),
        (lambda t, m: m.update(config=json.dumps([])), "expected the config of a MixSyn"),
        (lambda t, m: m.pop("sha256"), "damaged: the SHA-256"),
    ],
)
def test_a_file_that_is_not_this_model_says_so(
    mixsyn: MixSyn, tmp_path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None], words: str
) -> None:
    path = tmp_path / "model.safetensors"
    mixsyn.save(path)
    altered(path, change)
    with pytest.raises(ValueError, match=words) as caught:
        MixSyn.load(path)
    assert str(path) in str(caught.value)


def test_damage_is_found(mixsyn: MixSyn, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    mixsyn.save(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-1000] ^= 1
    for content in (b"", b"not a model", whole[: len(whole) // 2], whole[:20], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(ValueError) as caught:
            MixSyn.load(path)
        assert str(path) in str(caught.value)


def test_no_such_file(tmp_path: Path, mixsyn: MixSyn) -> None:
    with pytest.raises(FileNotFoundError, match="none.safetensors: no such file"):
        MixSyn.load(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="config.json"):
        MixSyn.load(tmp_path)
    mixsyn.save(tmp_path / "new folder" / "model.safetensors")
    assert MixSyn.load(tmp_path / "new folder" / "model.safetensors").classes == mixsyn.classes
    with pytest.raises(IsADirectoryError, match="expected a file to write"):
        mixsyn.save(tmp_path / "new folder")


def test_a_save_that_fails_leaves_the_old_file(mixsyn: MixSyn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    mixsyn.save(path)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        MixSyn(*networks(seed=1), CONFIG).save(path)
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == [path.name]


def run_folder(folder: Path, seed: int = 0, config: Config = CONFIG, model: str = "mixsyn") -> MixSyn:
    """Write a run folder as training does; return what its averaged weights are."""
    live, averaged = networks(config, seed), networks(config, seed + 1)
    folder.mkdir()
    whole = {"model": model, "task": to_dict(config), "classes": list(config.classes)}
    (folder / "config.json").write_text(json.dumps(whole))
    names = ("structure_generator", "style_generator")
    tensors = {f"network.{name}": dict(network.state_dict()) for name, network in zip(names, live, strict=True)}
    tensors["average"] = {
        f"{name}.{key}": value
        for name, network in zip(names, averaged, strict=True)
        for key, value in network.state_dict().items()
    }
    save_checkpoint(folder / "checkpoints", 3, tensors, {})
    return MixSyn(*averaged, config)


def test_a_run_folder_gives_its_averaged_weights(tmp_path: Path) -> None:
    expected = run_folder(tmp_path / "run")
    loaded = MixSyn.load(tmp_path / "run")
    assert same_weights(loaded.structure, expected.structure) and same_weights(loaded.style, expected.style)
    assert loaded.config == expected.config
    loaded.save(tmp_path / "model.safetensors")
    assert same_weights(MixSyn.load(tmp_path / "model.safetensors").style, expected.style)


def test_a_run_folder_that_is_not_of_this_model_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_folder(folder)
    whole = json.loads((folder / "config.json").read_text())
    wider = to_dict(replace(CONFIG, structure=replace(CONFIG.structure, width=8)))
    for change, words in (
        ({"model": "pix2pix"}, "model: expected one of"),
        ({"task": {"flavour": 1}}, "unknown flavour"),
        ({"task": wider}, "size mismatch"),
    ):
        (folder / "config.json").write_text(json.dumps(whole | change))
        with pytest.raises(ValueError, match=words) as caught:
            MixSyn.load(folder)
        assert str(folder) in str(caught.value)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="expected a run of `mixsyn-fast train mixsyn`"):
        MixSyn.load(folder)


def test_a_run_of_another_model_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spade = trained.Trained(None, {"generator": nn.Linear(1, 1)}, {"model": "spade"}, 1)  # type: ignore[arg-type]
    monkeypatch.setattr(trained, "load_trained", lambda folder, device: spade)
    with pytest.raises(ValueError, match="got: a run of model 'spade'"):
        MixSyn.load(tmp_path)


def test_paths_are_pictures_and_the_crop_is_the_trainings(tmp_path: Path) -> None:
    from mixsyn_fast.models.pictures.files import save_image, save_labels

    from mixsyn_fast import models

    pytest.importorskip("PIL", reason="pillow is not installed")
    assert models.MixSyn is MixSyn
    with pytest.raises(AttributeError, match="no attribute 'MaxSyn'"):
        models.MaxSyn  # noqa: B018
    mixsyn = MixSyn(*networks(), CONFIG)
    pictures = [replace(each, labels=each.labels.clip(0)) for each in (A, B)]
    for each in pictures:
        save_image(tmp_path / f"{each.name}.png", each.image)
        save_labels(tmp_path / f"{each.name}_labels.png", each.labels, len(mixsyn.classes))
    (tmp_path / "classes.txt").write_text("\n".join(mixsyn.classes))
    expected = mixsyn.compose({"door": pictures[0]}, pictures[1])
    made = mixsyn.compose({"door": str(tmp_path / "a.png")}, tmp_path / "b.png")
    assert np.array_equal(made.image, expected.image) and made.table == expected.table
    wide = Picture(np.tile(pictures[0].image, (1, 2, 1)), np.tile(pictures[0].labels, (1, 2)), "wide")
    assert np.array_equal(mixsyn.fitted(wide).labels, fit(wide, mixsyn.size).labels)
    mixsyn.crop = "none"
    assert np.array_equal(mixsyn.fitted(wide).labels, fit(wide, mixsyn.size, "none").labels)
    with pytest.raises(ValueError, match="crop: expected 'center' or 'none', got 'random'"):
        MixSyn(mixsyn.structure, mixsyn.style, mixsyn.config, "random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected at least one region to stay, got None for all"):
        mixsyn.compose(dict.fromkeys(mixsyn.classes), pictures[0])


def test_what_lies_outside_an_edit_stays(mixsyn: MixSyn) -> None:
    """The composition bit for bit, from a pixel around the area on; the image too, blended over two pixels."""
    editors = {outside: mixsyn.editor(base=C) for outside in ("made", "composition", "image")}
    start = editors["made"].current
    made = {outside: editor.replace({"door": A}, outside=outside) for outside, editor in editors.items()}  # type: ignore[arg-type]
    door = CLASSES.index("door")
    for outside in ("composition", "image"):
        decoded = mixsyn.decode(editors[outside].codes.structure).numpy()
        inside = (start.labels == door) | (decoded.argmax(0) == door)
        area = np.zeros_like(inside)
        for y, x in np.argwhere(inside):
            area[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = True
        assert 0 < area.mean() < 1
        assert np.array_equal(made[outside].composition[:, ~area], start.composition[:, ~area])
        assert np.array_equal(made[outside].composition[:, area], decoded[:, area])
        assert np.array_equal(made[outside].labels[~area], start.labels[~area])
    far = np.ones_like(area)
    for y, x in np.argwhere(inside):
        far[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = False
    assert far.any() and np.array_equal(made["image"].image[far], start.image[far])
    assert np.array_equal(made["image"].image[inside], made["composition"].image[inside])
    drift = [editors["made"].drift(start, each, ["door"]).mean_outside for each in made.values()]
    assert drift[2] < 0.5 * drift[1]
    with pytest.raises(ValueError, match="outside: expected one of made, composition, image, layers, got 'all'"):
        editors["made"].replace({"door": A}, outside="all")  # type: ignore[arg-type]


def around(mask: np.ndarray, reach: int) -> np.ndarray:
    """Every pixel at most `reach` away from a mask, also across a corner."""
    grown = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        grown[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1] = True
    return grown


def test_layers_outside_an_edit_stay(mixsyn: MixSyn) -> None:
    """No blend: more than two pixels from the area every pixel stays, and of every layer all but the nearest cells."""
    editor, plain = mixsyn.editor(base=C), mixsyn.editor(base=C)
    start = editor.current
    editor.keep_layers()
    kept = editor._layers
    editor.keep_layers()
    assert kept is not None and editor._layers is kept  # nothing twice
    kept = module.Layers(list(kept.structure), list(kept.style))
    assert np.array_equal(to_uint8(kept.style[-1])[0], start.image)
    made = editor.replace({"door": A}, outside="layers")
    which = [CLASSES.index(name) for name in made.changed]
    area = np.isin(start.labels, which) | np.isin(made.labels, which)
    far = ~around(area, 2)
    assert area.any() and far.any()
    assert np.array_equal(made.image[far], start.image[far]) and not np.array_equal(made.image[area], start.image[area])
    assert np.array_equal(made.composition[:, ~around(area, 1)], start.composition[:, ~around(area, 1)])
    after = editor._layers
    assert after is not None and len(after.style) == len(kept.style) and len(after.structure) == len(kept.structure)
    for old, new in zip(kept.style, after.style, strict=True):
        cell = SIZE[0] // old.shape[2]
        cells = area.reshape(old.shape[2], cell, old.shape[3], cell).any((1, 3))
        held = torch.from_numpy(~around(cells, 2 if old is kept.style[-1] else 1))
        assert torch.equal(old[..., held], new[..., held]) and not torch.equal(old, new)
    made_anew = plain.replace({"door": A})
    drift = [plain.drift(start, each, made.changed).mean_outside for each in (made_anew, made)]
    assert drift[1] < 0.5 * drift[0]
    for name in ("structure", "style"):
        assert torch.equal(getattr(editor.codes, name), getattr(plain.codes, name))


def test_layers_go_on_from_any_state(mixsyn: MixSyn) -> None:
    """After a pass over all, or a blend, layers are made for what is shown; a region that is nowhere changes nothing."""
    editor = mixsyn.editor(base=C)
    blend = editor.replace({"door": A}, outside="image")
    assert editor._layers is None
    made = editor.replace({"window": A}, outside="layers")
    area = np.isin(blend.labels, [1]) | np.isin(made.labels, [1])
    far = ~around(area, 2)
    assert np.array_equal(made.image[far], blend.image[far]) and editor._layers is not None
    again = editor.replace({"window": A}, outside="layers")
    assert again.changed == () and np.array_equal(again.image, made.image)
    editor.replace({"shop": B})
    assert editor._layers is None


def test_layers_need_region_adaptive_normalisation() -> None:
    config = replace(CONFIG, style=replace(CONFIG.style, normalisation="global"))
    editor = MixSyn(*networks(config), config).editor(base=C)
    before = editor.current
    with pytest.raises(ValueError, match="outside: expected another than 'layers', which needs region-adaptive"):
        editor.replace({"door": A}, outside="layers")
    assert editor.current is before
