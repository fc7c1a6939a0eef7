"""`mixsyn-fast train stylefusion` from files, and what comes out of it in use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mixsyn_fast.models.stylefusion.model import StyleFusion
from mixsyn_fast.models.stylefusion.segments import Segments
from mixsyn_fast.models.stylegan2 import Generator
from mixsyn_fast.models.training import checkpoint, command
from mixsyn_fast.models.unconditional import load_generator, save_generator

from mixsyn_fast import cli
from tests.models.stylefusion.test_task import TREE

pytest.importorskip("safetensors", reason="safetensors is not installed")


def test_a_tree_is_trained_and_used(
    generator: Generator, segments: Segments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_generator(generator, tmp_path / "g.safetensors")
    segments.save(tmp_path / "s.json")
    (tmp_path / "tree.json").write_text(TREE)
    words = ["stylefusion", "--generator", str(tmp_path / "g.safetensors"), "--segments", str(tmp_path / "s.json")]
    words += ["--tree", str(tmp_path / "tree.json"), "--hidden", "8", "--stage1", "1", "--stage2", "1", "--stage3", "1"]
    words += ["--batch-size", "2", "--workers", "0", "--ema-decay", "0", "--validate-images", "2"]
    assert command.run([*words, "--nodes", "all", "--out", str(tmp_path / "top")]) == 0
    whole = json.loads((tmp_path / "top" / "config.json").read_text())
    assert "data" not in whole and whole["options"]["steps"] == 3
    with pytest.raises(
        ValueError, match="init-from: expected weights of align_all, fuse_all, on which what is trained rests"
    ):
        command.run([*words, "--nodes", "main", "--out", str(tmp_path / "rest")])
    begin = ["--init-from", str(tmp_path / "top")]
    assert command.run([*words, "--nodes", "main", *begin, "--out", str(tmp_path / "rest")]) == 0
    (saved,) = (tmp_path / "rest" / "checkpoints").glob("step_*")
    whole = checkpoint.open_checkpoint(saved)
    moments = [whole.tensors(group) for group in whole.groups if group.startswith("optimizer.")]
    assert moments == [{}] * len(moments)  # every stage is over
    assert cli.main(["evaluate", "--run", str(tmp_path / "rest"), "--data", "x"]) == 2
    assert "run: expected a run on pictures, got one of stylefusion" in capsys.readouterr().err
    with pytest.raises(ValueError, match="compile: StyleFusionTask calls parts of its networks"):
        command.run([*words, "--nodes", "all", "--compile", "--out", str(tmp_path / "c")])
    fusion, top = StyleFusion.load(tmp_path / "rest"), StyleFusion.load(tmp_path / "top")
    assert set(fusion.hierarchy.nets) == {"all", "main"} and set(top.hierarchy.nets) == {"all"}
    for (name, value), (_, other) in zip(
        fusion.hierarchy.nets["all"].state_dict().items(), top.hierarchy.nets["all"].state_dict().items(), strict=True
    ):
        assert torch.equal(value, other), name
    made = fusion.fuse(fusion.generate(1).codes, {"left": 2})
    assert made.image.shape == (32, 32, 3) and fusion.segments is not None


def test_where_a_generator_comes_from(generator: Generator, tmp_path: Path) -> None:
    save_generator(generator, tmp_path / "g.safetensors", half=True)
    again = load_generator(tmp_path / "g.safetensors")
    assert not again.training and again.config == generator.config
    torch.testing.assert_close(again.input.input, generator.input.input, rtol=1e-3, atol=1e-3)
    with pytest.raises(FileNotFoundError, match="nothing.safetensors: no such weights came with the package"):
        load_generator("nothing")
    with pytest.raises(FileNotFoundError, match="generator: expected a run folder"):
        load_generator(tmp_path / "none.safetensors")
