"""The transfer matrix against one-hot label maps that are carried over, the tree of labels, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixsyn_fast.models.data import FACADE_CLASSES, ProceduralSource, RegionDataset
from mixsyn_fast.models.evaluation.inputs import DataReference
from mixsyn_fast.models.msca.config import GeneratorConfig
from mixsyn_fast.models.msca.label_transfer import Carried, Transfer, carried, label_masses, transfer_of
from mixsyn_fast.models.msca.model import MSCA
from mixsyn_fast.models.msca.networks import Alignment, Synthesis
from mixsyn_fast.models.msca.transfer import clusters, look_at, strongest
from torch import Tensor

from mixsyn_fast import RegionMap, cli

SIZE, L, M = 32, 5, 4


def config(**fields: Any) -> GeneratorConfig:
    small: dict[str, Any] = {"label_nc": L, "trunk": "own", "trunk_width": 3, "features": 5, "condition": M, "ngf": 2}
    return GeneratorConfig(**(small | {"maps": (3, 4, 2, 4, 4), "hidden": 4, "largest": 8} | fields))


def alignment(**fields: Any) -> Alignment:
    torch.manual_seed(1)
    made = Alignment(config(**fields)).double().requires_grad_(False)
    for aligner in made.aligners:  # far from even attention
        for weight in aligner.parameters():
            weight.mul_(6)
    return made


def inputs(seed: int, lacking: int | None = None) -> tuple[list[Tensor], RegionMap]:
    """Features and the label map of a picture; some positions have no label."""
    made = torch.Generator().manual_seed(seed)
    features = [
        torch.randn(1, c, SIZE >> i, SIZE >> i, generator=made, dtype=torch.float64)
        for i, c in enumerate(config().trunk_channels)
    ]
    labels = torch.randint(-1, L, (1, 4, 4), generator=made).repeat_interleave(8, 1).repeat_interleave(8, 2)
    if lacking is not None:
        labels[labels == lacking] = -1
    return features, RegionMap(labels, L, ignore_index=-1)


def by_hand(made: Alignment, exemplar: Any, target: Any, scale: int, gates: bool = True) -> np.ndarray:
    """Carry the one-hot label map of the exemplar over, and compare it with that of the target, position by position."""
    features, theirs = exemplar
    ours = target[1]
    alpha = made.spatial_maps(features, theirs)[scale][0].numpy()  # (K, h, w)
    layout = made.layout(ours, (SIZE, SIZE)).targets[scale]
    own = made.layout(theirs, (SIZE, SIZE)).targets[scale]
    onehot = theirs.onehot(alpha.shape[1:], torch.float64)[0].numpy()
    values = np.einsum("khw,lhw->kl", alpha, onehot)  # Eq. 5
    gate = made.aligner(scale).gate
    if gate is not None and gates:
        mlp = torch.sigmoid(gate(torch.cat((layout.condition_mean, own.condition_mean), 1)))[0]
        values = values * mlp.numpy()[:, None]  # Eq. 6
    transferred = np.einsum("kl,khw->lhw", values, layout.maps[0].numpy())  # Eq. 8
    labels = ours.labels_at(alpha.shape[1:])[0].numpy()
    found = np.zeros((L, L))
    for t in range(L):
        found[:, t] = transferred[:, labels == t].sum(1) / labels.size
    return found


@pytest.mark.parametrize("scale", [0, 2])
@pytest.mark.parametrize("fields", [{}, {"masking": False}, {"attention": "gap"}, {"attention": "labels"}])
def test_the_matrix_is_that_of_one_hot_maps_carried_over(fields: dict[str, Any], scale: int) -> None:
    made = alignment(**fields)
    pictures = [inputs(1), inputs(2, lacking=3), inputs(3)]
    gate = made.aligner(scale).gate
    found = transfer_of([carried(made, *picture, scale) for picture in pictures], gate)
    pairs = [(a, b) for a in pictures for b in pictures if a is not b]
    expected = sum(by_hand(made, a, b, scale) for a, b in pairs)
    np.testing.assert_allclose(found.sums, expected, rtol=1e-6, atol=1e-12)
    assert found.pairs == len(pairs) == 6
    np.testing.assert_allclose(found.ratios, expected / expected.sum(1, keepdims=True), rtol=1e-6, atol=1e-12)
    shares = [np.bincount(r.labels_at((SIZE, SIZE)).flatten() + 1, minlength=L + 1)[1:] / SIZE**2 for _, r in pictures]
    np.testing.assert_allclose(found.even, sum(np.outer(a, b) for a in shares for b in shares if a is not b), atol=1e-12)
    np.testing.assert_allclose(found.shares, np.mean(shares, 0))
    if fields.get("attention") == "gap":  # it is what lift compares with
        np.testing.assert_allclose(found.lift, 1, rtol=1e-6)
    elif fields.get("attention") == "labels":
        np.testing.assert_allclose(found.ratios, np.eye(L), atol=1e-12)
    else:
        assert np.abs(found.lift - 1).max() > 0.05
    if gate is not None:
        without = transfer_of([carried(made, *picture, scale) for picture in pictures])
        expected = sum(by_hand(made, a, b, scale, gates=False) for a, b in pairs)
        np.testing.assert_allclose(without.sums, expected, rtol=1e-6, atol=1e-12)


def test_masses_of_labels() -> None:
    _, regions = inputs(4, lacking=2)
    maps = torch.rand(1, 3, SIZE, SIZE, dtype=torch.float64)
    found = label_masses(maps, regions)
    labels = regions.labels_at((SIZE, SIZE))[0]
    for label in range(L):
        torch.testing.assert_close(found[0, :, label], maps[0][:, labels == label].sum(1))
    assert not found[0, :, 2].any()
    soft = RegionMap.soft(torch.rand(1, L, SIZE, SIZE, dtype=torch.float64).softmax(1))
    weights = soft.weights_at((SIZE, SIZE)).to(maps.dtype)
    torch.testing.assert_close(label_masses(maps, soft), torch.einsum("bkhw,blhw->bkl", maps, weights), rtol=1e-5, atol=1e-4)


def test_labels_that_never_meet() -> None:
    def picture(given: list[float]) -> Carried:
        shares = torch.tensor(given, dtype=torch.float64)
        return Carried(shares[None], shares[None], shares, torch.zeros(1, dtype=torch.float64))

    found = transfer_of([picture([0.3, 0.0, 0.0, 0.7]), picture([0.0, 0.1, 0.0, 0.9])])
    assert np.isnan(found.ratios[2]).all() and not np.isnan(found.ratios[[0, 1, 3]]).any()
    assert np.isnan(found.lift[0, 0])  # alone in one picture: no pair has it on both sides
    np.testing.assert_allclose(found.lift[0, [1, 3]], 1)
    assert found.frequent(9) == [3, 0, 1] and found.frequent(2) == [3, 0]
    with pytest.raises(ValueError, match="pictures: expected at least two, an exemplar and a target, got 1"):
        transfer_of([picture([1.0])])


def test_labels_that_hand_over_alike_are_joined_first() -> None:
    sums = np.array([[8.0, 1, 2, 9], [1, 6, 2, 11], [5, 5, 10, 0], [2, 2, 15, 1]])
    found = Transfer(sums, np.ones((4, 4)), np.array([0.1, 0.2, 0.3, 0.4]), 12)
    rows = found.feature_vectors([0, 1, 2, 3])
    ratios = sums / 20
    for i in range(4):
        expected = ratios[i].copy()
        expected[i] = sorted(ratios[i])[-2]
        np.testing.assert_allclose(rows[i], expected)
    tree = clusters(found, [0, 1, 2, 3], "average")
    assert {int(at) for at in tree[0, :2]} == {0, 1}  # both to the last label, whatever they keep for themselves
    assert tree[0, 2] == pytest.approx(float(np.linalg.norm(rows[0] - rows[1])))
    assert {int(at) for at in tree[1, :2]} == {2, 3} and tree[2, 3] == 4
    assert strongest(found, [0, 1, 2, 3], "abcd", 1)[0].startswith("d -> c: 0.750 of what it hands over, 3.00 times")
    with pytest.raises(ValueError, match="labels: expected at least two to compare, got 1"):
        found.feature_vectors([2])


# ------------------------------------------------------------------------------------------------------------ the command


def model(**fields: Any) -> MSCA:
    settings = config(label_nc=len(FACADE_CLASSES), **fields)
    torch.manual_seed(2)
    return MSCA(Alignment(settings), Synthesis(settings), FACADE_CLASSES, (SIZE, SIZE))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in a file."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model().save(path)
    return path


def test_the_command(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["msca", "transfer", "--model", str(file), "--limit", "3", "--labels", "4", "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--json", str(tmp_path / "t.json")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"transfer.png", "dendrogram.png"}
    found = json.loads((tmp_path / "t.json").read_text())
    assert found["pairs"] == 6 and found["classes"] == list(FACADE_CLASSES)
    source = ProceduralSource("procedural_facades", 3, 2 * 10**9, (SIZE, SIZE))
    looked = look_at(model(), DataReference(source, RegionDataset(source, SIZE)), [])
    expected = transfer_of(looked, model().alignment.aligner(0).gate)
    present = ~np.isnan(expected.ratios[:, 0])
    np.testing.assert_allclose(np.array(found["ratios"], float)[present], expected.ratios[present], rtol=1e-5)
    assert len(found["tree"]) == len(found["clustered"]) - 1 > 2
    said = capsys.readouterr().out
    assert "6 pairs of 3 pictures" in said and " -> " in said
    assert cli.main([*words, "--no-gates", "--json", str(tmp_path / "open.json")]) == 0
    assert json.loads((tmp_path / "open.json").read_text())["ratios"] != found["ratios"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--limit", "1"], "limit: expected at least 2, got 1"),
        (["--scale", "5"], "scale: expected 0 to 4, got 5"),
        (["--clustered", "1"], "clustered: expected at least 2, got 1"),
        (["--json", "t.png"], "json: expected a file name ending in .json, got t.png"),
        (["--out", "{model}"], "out: expected a folder, got the file"),
        (["--kind", "procedural_faces"], "data: expected the model's 12 classes, got 19 of procedural_faces"),
    ],
)
def test_bad_input_is_one_message_before_any_work(
    words: list[str], message: str, file: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"--model": "{model}", **dict(zip(words[::2], words[1::2], strict=True))}
    filled = [word.format(model=file) for pair in given.items() for word in pair]
    assert cli.main(["msca", "transfer", *filled]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.out == "" and len(said.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
