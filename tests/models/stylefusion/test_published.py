"""Loading of published FusionNet weights: every form of file, whole trees by a map, and files that do not fit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mixsyn_fast.models.stylefusion import CHURCHES, load_fusion_hierarchy, load_fusion_net, write_tree
from torch import Tensor

from mixsyn_fast import StyleLayout
from mixsyn_fast.layers import FusionConfig, FusionNet
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


def test_columns_of_the_first_linear() -> None:
    """First, second, extra, indicator: one coarse layer of StyleGAN2's own layout, written out once more."""
    torch.manual_seed(0)
    layout, layer = StyleLayout.stylegan2(64), 1
    net = FusionNet(layout, hidden=64).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=100.0 if p.dim() == 2 else 30.0)
    s0, s1, align = (torch.randn(1, layout.size) for _ in range(3))
    with torch.no_grad():
        fusion = net.fuse(s0, s1, align)
        start, width = layout.offsets[layer], layout.channels[layer]
        a, b, third = (v[0, start : start + width].repeat_interleave(512 // width) for v in (*fusion.aligned, align))
        indicator = torch.zeros(19)
        indicator[layer] = 1
        x = torch.cat((a, b, third, indicator.repeat(10)))
        for linear in net.blender_segments.linears:
            weight = linear.weight * (0.01 / math.sqrt(linear.weight.shape[1]))
            x = F.leaky_relu(F.linear(x, weight, linear.bias * 0.01), 0.2) * math.sqrt(2)
        expected = (a + torch.sigmoid(x) * (b - a)).view(width, -1).amax(1)
        assert relative_error(fusion.code[0, start : start + width], expected) < 1e-5


@pytest.fixture
def churches(small: PublishedFusionNet, tmp_path: Path) -> Path:
    """A map of one node, to a file in a folder beside it."""
    (tmp_path / "nets").mkdir()
    torch.save(small.state_dict(), tmp_path / "nets" / "all.pt")
    (tmp_path / "nodes.json").write_text('{"all": "nets/all.pt"}')
    return tmp_path / "nodes.json"


def test_a_hierarchy_by_the_map_of_its_nodes(churches: Path, small: PublishedFusionNet) -> None:
    s_align, first, second = codes(LAYOUT.size, 2, torch.float32)
    given = {"all": s_align, "church": first, "background": second}
    with torch.no_grad():
        expected = small(first, second, s_align, CONV, RGB)
        tree = load_fusion_hierarchy(churches, "churches", LAYOUT)
        assert not tree.training and relative_error(tree(given), expected) < 1e-6
        # nodes that are missing have no network: they pass their own code
        config = FusionConfig({"all": ("church", "background"), "church": ("door", "tower")}, LAYOUT)
        tree = load_fusion_hierarchy(str(churches), config)
        assert set(tree.nets) == {"all"} and tree.layout == LAYOUT
        assert relative_error(tree(given | {"door": s_align, "tower": s_align}), expected) < 1e-6
    write_tree(churches.parent / "tree.json", CHURCHES)
    assert load_fusion_hierarchy(churches, churches.parent / "tree.json", LAYOUT).tree == CHURCHES.tree


def test_maps_that_do_not_fit(churches: Path) -> None:
    def fails(content: Any, words: str, error: type[Exception] = ValueError) -> None:
        churches.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(error, match=f"(?s)nodes.json: {words}"):
            load_fusion_hierarchy(churches, "churches", LAYOUT)

    fails("{", "expected JSON, got other text in line 1")
    fails(["a"], "expected a JSON object from node to file of FusionNet weights, got list")
    fails({"all": "nets/all.pt", "face": "x"}, r"expected inner nodes among all, got \['face'\]")
    fails({"all": 5}, "node 'all': expected the name of a file, got 5")
    fails({"all": "absent.pt"}, "node 'all': .*absent.pt: no such file", FileNotFoundError)
    torch.save({"a": torch.zeros(1)}, churches.parent / "nets" / "all.pt")
    fails({"all": "nets/all.pt"}, "node 'all': load_fusion_net: source: expected the 20 entries")
    with pytest.raises(FileNotFoundError, match="absent.json: no such file .expected a JSON object from node"):
        load_fusion_hierarchy(churches.parent / "absent.json")
