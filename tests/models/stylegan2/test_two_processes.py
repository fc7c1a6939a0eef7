"""StyleGAN2 learnt by two processes: a run that was interrupted goes on bit for bit, in both of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mixsyn_fast.models.training import checkpoint

from tests.processes import run_ranks

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

TRAIN = "import sys\nfrom mixsyn_fast.models.training.command import run\nrun(sys.argv[1:])\n"


def test_two_processes_go_on_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "set" / f"{i}.png")
    words = f"stylegan2 --data {tmp_path / 'set'} --kind images --validation none --size 16 --batch-size 4 --workers 0"
    words += " --generator.z-dim 8 --generator.w-dim 8 --generator.mapping-layers 2 --generator.channel-base 64"
    words += " --generator.channel-max 8 --r1-every 2 --path-length-every 2 --augment.speed 20 --augment.interval 2"
    words += " --log-every 1 --sheet-every 0 --device cpu"
    for out, steps in (("whole", 5), ("parts", 3), ("parts", 5)):  # after three steps signs are counted that p has not taken
        run_ranks(TRAIN, [*words.split(), "--steps", str(steps), "--out", str(tmp_path / out)])
    whole, parts = (checkpoint.newest_valid(tmp_path / name / "checkpoints") for name in ("whole", "parts"))
    assert whole is not None and parts is not None and whole.step == parts.step == 5
    assert whole.state["task"] == parts.state["task"] and whole.state["task"]["augment"]["sums"] is not None
    for group in ("network.generator", "network.discriminator", "average"):
        theirs = parts.tensors(group)
        for name, value in whole.tensors(group).items():
            assert torch.equal(value, theirs[name]), f"{group}.{name}"
