"""Face parsing: the region of every pixel of a face photo, 19 classes in CelebAMask-HQ's order.

Yu, Wang, Peng, Gao, Yu, Sang: BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation, ECCV 2018. The
variant that public face weights (`79999_iter.pth`) are for: ResNet-18 as context path, and its features at 1/8 in place of
the spatial path. Names of modules are those of that file, which loads strictly.
"""

from __future__ import annotations

import os

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoints import load_checked, read_state
from .data import FACE_CLASSES
from .feature_networks import MEAN, STD

FILE_CLASSES = (
    *("background", "skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "l_ear", "r_ear", "ear_r"),
    *("nose", "mouth", "u_lip", "l_lip", "neck", "neck_l", "cloth", "hair", "hat"),
)
"""Classes in the order of the public weights' channels."""


class _ConvUnit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inner: int, outer: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outer)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Residual(nn.Module):
    """Basic block of ResNet-18 (He et al., CVPR 2016)."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inner != outer:
            self.downsample = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        inside = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inside + self.downsample(x))


class _ResNet18(nn.Module):
    """Trunk of ResNet-18; returns the features at 1/8, 1/16 and 1/32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inner = 64
        for i, outer in enumerate((64, 128, 256, 512), 1):
            stride = 1 if i == 1 else 2
            self.add_module(f"layer{i}", nn.Sequential(_Residual(inner, outer, stride), _Residual(outer, outer, 1)))
            inner = outer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        eighth = self.layer2(self.layer1(x))
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.layer4(sixteenth)


class _AttentionRefinement(nn.Module):
    """Attention refinement module (Fig. 2b): features times a sigmoid weight per channel from their global mean."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.conv = _ConvUnit(inner, outer)
        self.conv_atten = nn.Conv2d(outer, outer, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(outer)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * torch.sigmoid(self.bn_atten(self.conv_atten(x.mean((2, 3), keepdim=True))))


class _ContextPath(nn.Module):
    """ResNet-18 with refinement at 1/32 and 1/16; the global mean comes in at the tail. Two maps at 1/8."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = _ResNet18()
        self.arm16 = _AttentionRefinement(256, 128)
        self.arm32 = _AttentionRefinement(512, 128)
        self.conv_head32 = _ConvUnit(128, 128)
        self.conv_head16 = _ConvUnit(128, 128)
        self.conv_avg = _ConvUnit(512, 128, kernel=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        eighth, sixteenth, deepest = self.resnet(x)
        context = self.arm32(deepest) + self.conv_avg(deepest.mean((2, 3), keepdim=True))
        context = self.conv_head32(F.interpolate(context, sixteenth.shape[2:], mode="nearest"))
        context = self.arm16(sixteenth) + context
        return eighth, self.conv_head16(F.interpolate(context, eighth.shape[2:], mode="nearest"))


class _FeatureFusion(nn.Module):
    """Feature fusion module (Fig. 2c)."""

    def __init__(self) -> None:
        super().__init__()
        self.convblk = _ConvUnit(256, 256, kernel=1)
        self.conv1 = nn.Conv2d(256, 64, 1, bias=False)
        self.conv2 = nn.Conv2d(64, 256, 1, bias=False)

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        x = self.convblk(torch.cat((spatial, context), 1))
        return x + x * torch.sigmoid(self.conv2(F.relu(self.conv1(x.mean((2, 3), keepdim=True)))))


class _Head(nn.Module):
    """3 x 3 unit, then one channel per class."""

    def __init__(self, inner: int, middle: int, classes: int) -> None:
        super().__init__()
        self.conv = _ConvUnit(inner, middle)
        self.conv_out = nn.Conv2d(middle, classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.conv(x))


class FaceParser(nn.Module):
    """BiSeNet for faces.

    forward(images): (B, 3, H, W) in [-1, 1], H and W at least 32 -> logits (B, 19, H, W), channels in the order of
    `FACE_CLASSES` (CelebAMask-HQ's). Trained on aligned faces of 512 x 512 pixels. Raises ValueError on another shape.
    """

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        classes = len(FILE_CLASSES)
        self.cp = _ContextPath()
        self.ffm = _FeatureFusion()
        self.conv_out = _Head(256, 256, classes)
        self.conv_out16 = _Head(128, 64, classes)  # the two auxiliary heads of training: stored, not run
        self.conv_out32 = _Head(128, 64, classes)
        self.register_buffer("order", torch.tensor([FILE_CLASSES.index(c) for c in FACE_CLASSES]), persistent=False)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits; see the class."""
        if images.dim() != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 32:
            raise ValueError(f"images: expected shape (B, 3, H, W) of at least 32 x 32 pixels, got {tuple(images.shape)}")
        logits = self.conv_out(self.ffm(*self.cp(((images + 1) / 2 - self.mean) / self.std)))
        return F.interpolate(logits[:, self.order], images.shape[2:], mode="bilinear", align_corners=True)

    @torch.no_grad()
    def parse(self, photo: np.ndarray, size: int = 512) -> np.ndarray:
        """Parse a photo (H, W, 3) uint8: labels (H, W) uint8, class in the order of `FACE_CLASSES`.

        The network sees the photo with its shorter side `size` pixels long; the logits come back to the photo's size.

        Raises:
            ValueError: another shape or dtype, or a size below 32.
        """
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8 or min(photo.shape[:2]) < 1:
            raise ValueError(f"photo: expected (H, W, 3) uint8, got {photo.shape} {photo.dtype}")
        if size < 32:
            raise ValueError(f"size: expected at least 32 pixels, got {size}")
        pixels = torch.tensor(photo).permute(2, 0, 1)[None].to(self.mean)
        scale = size / min(photo.shape[:2])
        inner = [max(32, round(side * scale)) for side in photo.shape[:2]]
        resized = F.interpolate(pixels, inner, mode="bilinear", align_corners=False, antialias=True)
        logits = F.interpolate(self(resized / 127.5 - 1), photo.shape[:2], mode="bilinear", align_corners=False)
        return logits[0].argmax(0).to(torch.uint8).cpu().numpy()


def load_face_parser(path: str | os.PathLike[str]) -> FaceParser:
    """Return the network of a weights file (`79999_iter.pth`, or the same entries as .safetensors), in eval mode.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds something else; the message lists the entries that are missing or unexpected.
    """
    state = read_state(path)
    parser = FaceParser()
    load_checked(parser, state, fold=False, source=os.fspath(path))
    return parser.eval().requires_grad_(False)
