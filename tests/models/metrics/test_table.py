"""One row says all of a metric: choices, tools and reports follow from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mixsyn_fast.models.evaluation.compare import Compared, Comparison
from mixsyn_fast.models.evaluation.report import Report
from mixsyn_fast.models.metrics import table
from mixsyn_fast.models.metrics.table import CHOICES, DEFAULT, METRICS, Metric, Tools


def test_what_a_command_offers() -> None:
    assert CHOICES == ("psnr", "ssim", "rmse", "lpips_vgg", "lpips_alex", "style", "fid", "fid_regions", "diversity")
    assert DEFAULT == ("psnr", "ssim", "rmse", "lpips_vgg", "lpips_alex", "fid")
    assert METRICS["psnr"].heading == "PSNR, dB ↑" and METRICS["fid"].heading == "FID ↓"


def test_a_new_row_is_all_that_a_new_metric_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def mae(outputs: torch.Tensor, targets: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return (outputs.double() - targets.double()).abs().mean((1, 2, 3))

    rows = {**METRICS, "mae": Metric("mae", "Mean error", "grey levels", False, "pair", mae)}
    for module in ("metrics.table", "evaluation.compare", "evaluation.report"):
        monkeypatch.setattr(f"mixsyn_fast.models.{module}.METRICS", rows)
    monkeypatch.setattr(table, "CHOICES", (*CHOICES, "mae"))
    tools = Tools(["mae"])
    comparison = Comparison(tools.pairs)
    pictures = torch.zeros(2, 12, 12, 3, dtype=torch.uint8).numpy()
    comparison.add([Compared("a", pictures[0] + 3, pictures[1])])
    report = Report("test", {}, scores=comparison.scores)
    assert "| Mean error, grey levels ↓ | 3 |" in report.as_markdown()
    entry = report.as_json()["metrics"]["mae"]
    assert entry["mean"] == 3 and entry["better"] == "lower" and entry["unit"] == "grey levels"


def test_tools_are_made_once_and_missing_ones_say_why(
    alexnet_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixsyn_fast.models.metrics.lpips.find_heads", lambda kind: alexnet_files[1])
    monkeypatch.setattr("mixsyn_fast.models.metrics.lpips.find_weights", lambda kind: None)
    files = {"lpips_alex": str(alexnet_files[0])}
    tools = Tools(["psnr", "lpips_vgg", "lpips_alex", "diversity", "fid", "fid_regions"], files)
    assert set(tools.pairs) == {"psnr", "lpips_alex"} and tools.pairs["lpips_alex"] is tools.diversity
    assert set(tools.missing) == {"lpips_vgg", "fid", "fid_regions"} and tools.inception is None
    with pytest.raises(FileNotFoundError, match="gone.pt"):
        Tools(["fid"], {"inception": "gone.pt"})
    with pytest.raises(ValueError, match="metrics: expected some of psnr, .* got psnrr"):
        Tools(["psnrr"])
