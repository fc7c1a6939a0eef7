"""Loading of published FusionNet weights: every form of file, and files that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mixsyn_fast.models.stylefusion import load_fusion_net
from torch import Tensor

from tests.compare import relative_error
from tests.layers.stylefusion_published import PublishedFusionNet
from tests.layers.test_fusion import CONV, DEPTH, HIDDEN, LAYOUT, RGB, codes, randomised


@pytest.fixture(scope="module")
def small() -> PublishedFusionNet:
    torch.manual_seed(7)
    net = PublishedFusionNet(HIDDEN, True, DEPTH)
    randomised(net)
    return net


def swapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"blender_common": "blender_segments", "blender_segments": "blender_common"}
    return {f"{names[k.split('.')[0]]}.{k.split('.', 1)[1]}": v for k, v in state.items()}


@pytest.mark.parametrize("form", ["plain", "nested", "module", "nested module", "swapped", "mapping", "safetensors"])
def test_files_load(form: str, small: PublishedFusionNet, tmp_path: Path) -> None:
    state: Any = dict(small.state_dict())
    if form == "swapped":
        state = swapped(state)
    if "module" in form:
        state = {f"module.{k}": v for k, v in state.items()}
    if "nested" in form:
        state = {"state_dict": state, "step": 5}
    source: Any = state
    if form == "safetensors":
        safetensors = pytest.importorskip("safetensors.torch")
        source = tmp_path / "net.safetensors"
        safetensors.save_file(state, source)
    elif form != "mapping":
        source = tmp_path / "net.pt"
        torch.save(state, source)
    net = load_fusion_net(source, LAYOUT)
    assert not net.training and net.blender_segments.hidden == HIDDEN
    inputs = codes(LAYOUT.size, 2, torch.float32)
    with torch.no_grad():
        assert relative_error(net(*inputs), small(*inputs, CONV, RGB)) < 1e-6
    assert load_fusion_net(str(source) if isinstance(source, Path) else source, LAYOUT).layout == LAYOUT


def test_dtype_and_defaults(small: PublishedFusionNet) -> None:
    state = {k: v.double() for k, v in small.state_dict().items()}
    net = load_fusion_net(state, LAYOUT, q_on="a")
    assert next(net.parameters()).dtype == torch.float64 and net.q_on == "a"
    with pytest.raises(ValueError, match="widths that divide 64, got 512"):
        load_fusion_net(state)  # StyleGAN2 at 1024 has layers of 512


def test_files_that_do_not_fit(small: PublishedFusionNet, tmp_path: Path) -> None:
    state = dict(small.state_dict())
    first = "blender_common.disentangle_net.0.weight"

    def fails(change: dict[str, Any], words: str) -> None:
        changed = {k: v for k, v in (state | change).items() if v is not None}
        with pytest.raises(ValueError, match="(?s)load_fusion_net: .*" + words):
            load_fusion_net(changed, LAYOUT)

    fails({"blender_common.disentangle_net.3.bias": None}, "1 missing:\n  blender_common.disentangle_net.3.bias")
    fails({"extra.weight": torch.zeros(1)}, "1 unexpected:\n  extra.weight")
    fails({"blender_common.disentangle_net.3.bias": 5}, "expected tensors, got something else at blender_common")
    fails({first: torch.zeros(3)}, r"0.weight: expected shape \(hidden, inputs\), got \(3,\)")
    fails({first: torch.zeros(HIDDEN, 400)}, "expected first layers of")
    wrong = "blender_segments.disentangle_net.2.weight"
    fails({wrong: torch.zeros(3, 4)}, rf"another shape:\n  {wrong}: expected \(40, 40\), got \(3, 4\)")
    with pytest.raises(ValueError, match="expected a mapping of tensors, got list"):
        load_fusion_net([1, 2], LAYOUT)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        load_fusion_net(tmp_path / "absent.pt")
