"""What the tests of models share: published.py importable, and a small LPIPS with random weights."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from mixsyn_fast.models.metrics import LPIPS
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))


def alexnet_trunk() -> nn.Sequential:
    """AlexNet's convolutions in the order of the public files, written down again: entries 0, 3, 6, 8, 10."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU()),
    )


@pytest.fixture(scope="session")
def alexnet_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files of a random trunk and of random heads."""
    folder = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(5)
    with torch.no_grad():
        trunk = {f"features.{name}": value.clone() for name, value in alexnet_trunk().state_dict().items()}
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate((64, 192, 384, 256, 256))}
    torch.save(trunk, folder / "trunk.pth")
    torch.save(heads, folder / "heads.pth")
    return folder / "trunk.pth", folder / "heads.pth"


@pytest.fixture(scope="session")
def random_lpips(alexnet_files: tuple[Path, Path]) -> LPIPS:
    """LPIPS on them."""
    return LPIPS("alexnet", *alexnet_files)


@pytest.fixture(scope="session")
def vgg16_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random VGG-16 in a file, with the keys of the public ones."""
    torch.manual_seed(3)
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    state = {}
    for i, at in enumerate((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)):
        state[f"features.{at}.weight"] = torch.randn(widths[i + 1], widths[i], 3, 3) * (2 / (9 * widths[i])) ** 0.5
        state[f"features.{at}.bias"] = torch.randn(widths[i + 1]) * 0.1
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, path)
    return path
