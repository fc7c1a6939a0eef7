"""The benchmark of StyleFusion's training step: parts that are made again as they were, gates, rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import run_stylefusion, schema
from benchmarks.run_stylefusion import Part


def test_a_part_is_made_again_with_the_gradients_that_it_had() -> None:
    weight, x = torch.randn(3, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    part = Part()
    first, second = part.recorded(lambda given: (given @ weight, [given.sum()]))(x)
    (first.square().sum() + 0 * second[0]).backward()
    assert weight.grad is not None and x.grad is not None
    expected, of_x = weight.grad.clone(), x.grad.clone()
    weight.grad = None
    part()
    torch.testing.assert_close(weight.grad, expected)
    assert torch.equal(x.grad, of_x)  # its inputs are leaves of their own


def test_every_stage_has_a_step_and_its_parts(tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    words = ["step", "--batch", "1", "--repeat", "1", "--seconds", "0.01", "--no-memory", "--out", str(out)]
    assert run_stylefusion.main(words) in (0, 1)  # at this scale nobody asks who wins
    found = schema.load(out)
    assert found["wrong"] == []
    parts = ("step", "generator", "fusion", "masks")
    cases = [f"stylefusion/stage {stage}, {part}" for stage in (1, 2, 3) for part in parts]
    assert [row["case"] for row in found["rows"]] == cases
    for row in found["rows"]:
        assert row["contenders"]["ours"]["gate"]["error"] < 0.02, row["case"]  # a pixel may change its cluster
        assert all(entry["timing"] for entry in row["contenders"].values())
        if row["settings"]["part"] == "step":
            assert set(row["facts"]["share of the step"]["ours"]) == {*parts[1:], "rest"}
    with pytest.raises(SystemExit):
        run_stylefusion.parse(["step", "--batch", "0"])
