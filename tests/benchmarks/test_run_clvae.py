"""The benchmark of the class- and layer-wise VAE: published form, gates, rows, and runs through the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import run_clvae, schema, tables
from mixsyn_fast.measure.clock import Timing
from mixsyn_fast.measure.gate import Gate
from mixsyn_fast.region_map import RegionMap

SMALL = ["--width", "2", "--size", "32", "--classes", "3", "--repeat", "1", "--no-memory"]


@pytest.fixture
def steps() -> dict[str, run_clvae.Step]:
    torch.manual_seed(4)
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    labels = torch.randint(0, 3, (2, 4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    return run_clvae.contenders(run_clvae.build(3, 6, 2, 32), image, labels)


def test_noise_is_the_same_in_every_dtype() -> None:
    drawn = []
    for dtype in (torch.float32, torch.float64):
        with run_clvae.same_noise(1):
            drawn.append((torch.randn((2, 3), dtype=dtype), torch.randn_like(torch.zeros(4, dtype=dtype))))
    for single, double in zip(*drawn, strict=True):
        assert double.dtype == torch.float64 and torch.equal(single.double(), double)


def test_every_contender_takes_the_same_step(steps: dict[str, run_clvae.Step]) -> None:
    verdicts = run_clvae.gates(steps)
    assert list(verdicts) == ["published", "dense", "ours"] and all(verdict.passed for verdict in verdicts.values())
    assert 0 < verdicts["published"].error < 1e-3
    losses = steps["ours"].first()
    names = {"generator/gan", "generator/feature_matching", "generator/kld", "discriminator/gan"}
    assert losses.keys() == names | {"generator gradients", "discriminator gradients"}


def test_a_step_moves_the_weights_and_leaves_no_gradient(steps: dict[str, run_clvae.Step]) -> None:
    step = steps["dense"]
    parameters = [p for network in step.task.networks.values() for p in network.parameters()]
    before = [p.detach().clone() for p in parameters]
    step()
    moved = sum(not torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    assert moved > len(parameters) // 2 and all(p.grad is None for p in parameters)


def test_a_wrong_contender_fails_its_gate(monkeypatch: pytest.MonkeyPatch, steps: dict[str, run_clvae.Step]) -> None:
    right = run_clvae.published_map
    monkeypatch.setattr(run_clvae, "published_map", lambda *given: right(*given) * 1.01)
    verdicts = run_clvae.gates(steps)
    assert not verdicts["published"].passed and verdicts["ours"].passed
    row = run_clvae.step_row("x", {}, verdicts, {"dense": Timing(1, 1, 1, 1), "ours": Timing(1, 1, 1, 1)})
    assert row["contenders"]["published"].timing is None and "wrong result" in row["contenders"]["published"].note


def test_pooling_is_the_same_class_by_class() -> None:
    labels = torch.randint(0, 4, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    bench = run_clvae.Pooling(labels, 6, (3, 5), (8, 2))  # classes 4 and 5 are absent
    exact = bench.double().run("dense", True)
    reference = bench.run("dense", True)
    for name in ("published", "per_class", "ours"):
        assert run_clvae.gate(bench.run(name, True), reference, exact, elements=False).passed, name
    assert exact["vectors"].shape == (2, 2, 6, 6)


def test_maps_of_vectors_are_zero_where_no_class_is() -> None:
    embedding, codes = torch.nn.Embedding(2, 3), torch.randn(1, 2, 3)
    found = run_clvae.published_map(embedding, codes, torch.tensor([[[0, 1, -1]]]))
    assert torch.equal(found[0, :, 0, 2], torch.zeros(3)) and torch.equal(
        found[0, :, 0, 1], (codes[0, 1] + embedding.weight[1])
    )


def test_runs_fill_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(run_clvae, "installed_vgg", lambda: None)
    monkeypatch.setattr(run_clvae, "pictures", lambda _, classes, size: pictures(classes, size))
    monkeypatch.setattr(run_clvae, "_WIDTHS", (3, 5))
    monkeypatch.setattr(run_clvae, "Pooling", lambda labels, classes: POOLING(labels, classes, (3, 5), (8, 4)))
    out = ["--out", str(tmp_path / "clvae.json")]
    for words in (["levels", "--levels", "1,3"], ["step", "--levels", "3"], ["pooling"]):
        assert run_clvae.main([*words, *SMALL, *out]) in (0, 1)  # at this scale nobody asks who wins
    found = schema.load(tmp_path / "clvae.json")
    assert found["wrong"] == [] and [row["case"] for row in found["rows"]] == [
        "clvae/levels k3 L1 w2",
        "clvae/levels k3 L3 w2",
        *(f"clvae/{part} k3 w2" for part in ("step", "encoder", "generator", "discriminator")),
        *(f"clvae/pooling k3 {mode}" for mode in ("forward", "both")),
    ]
    for row in found["rows"]:
        assert all(entry["timing"] for entry in row["contenders"].values())
    assert "floor" in found["rows"][2]["contenders"] and [goal["what"] for goal in found["rows"][1]["targets"]] == ["L = 1"]
    assert "clvae/step" in tables.render(json.loads((tmp_path / "clvae.json").read_text()))
    assert "timing levels K 3" in capsys.readouterr().out


POOLING = run_clvae.Pooling


def pictures(classes: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(classes)
    labels = torch.randint(0, classes, (2, 4, 4), generator=source).repeat_interleave(size // 4, 1)
    return torch.rand(2, 3, size, size, generator=source), labels.repeat_interleave(size // 4, 2)


def test_goals_and_notes() -> None:
    assert run_clvae.goal("dense", 2.6, least=2.5).met and not run_clvae.goal("dense", 2.4, least=2.5).met
    assert run_clvae.goal("L = 1", 1.1, most=1.15).met and not run_clvae.goal("L = 1", 1.2, most=1.15).met
    row = run_clvae.step_row("x", {}, {"ours": Gate(False, 1.0, 0.1, "y")}, {"floor": Timing(1, 1, 1, 1)})
    assert "wrong result: y" in row["contenders"]["ours"].note and row["contenders"]["floor"].gate is None


def test_absent_classes_have_no_maximum() -> None:
    features = torch.arange(8.0).view(1, 2, 2, 2)
    regions = RegionMap(torch.tensor([[[0, 0], [2, 2]]]), 3)
    found = [pooled for *_, pooled in run_clvae.maxima(features, regions.labels_at(), 3)]
    assert (
        found[1] is None
        and torch.equal(found[0], torch.tensor([1.0, 5.0]))
        and torch.equal(found[2], torch.tensor([3.0, 7.0]))
    )


def test_bad_options(capsys: Any) -> None:
    for words, message in (
        (["nothing"], "invalid choice: 'nothing'"),
        (["levels", "--levels", "0"], "expected positive numbers"),
        (["levels", "--width", "0"], "--width: expected a positive number"),
    ):
        with pytest.raises(SystemExit):
            run_clvae.parse(words)
        assert message in capsys.readouterr().err
