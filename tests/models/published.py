"""Plain PyTorch generators in the form in which the models were published; the yardstick of the model tests.

Written from the contracts alone (attribute names, state_dict names, formulas) and knowing nothing of this
package: dense convolutions of one-hot maps, Python loops over images and regions, spectral norm by torch's
own hook. Nothing here is fast, and nothing here may import mixsyn_fast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UPSAMPLINGS = {"normal": 5, "more": 6, "most": 7}


def free_norm(kind: str, channels: int) -> nn.Module:
    """Return the parameter-free normalisation named `kind` (batch or instance)."""
    if kind == "instance":
        return nn.InstanceNorm2d(channels, affine=False)
    return nn.BatchNorm2d(channels, affine=False)


def maybe_spectral(conv: nn.Module, spectral: bool) -> nn.Module:
    """Return `conv`, with torch's spectral norm hook when asked."""
    return nn.utils.spectral_norm(conv) if spectral else conv


class SPADE(nn.Module):
    """SPADE normalisation: norm(x) * (1 + gamma) + beta with gamma, beta from two stacked convolutions."""

    def __init__(self, channels: int, label_nc: int, norm: str = "batch", hidden: int = 128, ks: int = 3) -> None:
        super().__init__()
        self.param_free_norm = free_norm(norm, channels)
        self.mlp_shared = nn.Sequential(nn.Conv2d(label_nc, hidden, ks, padding=ks // 2), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden, channels, ks, padding=ks // 2)
        self.mlp_beta = nn.Conv2d(hidden, channels, ks, padding=ks // 2)

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        """Return the modulated x; segmap (B, K, h, w) of any size."""
        normalized = self.param_free_norm(x)
        hidden = self.mlp_shared(F.interpolate(segmap, size=x.shape[2:], mode="nearest"))
        return normalized * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


class SpadeMaps(SPADE):
    """The SPADE inside a SEAN layer: gives gamma and beta, its own norm stays unused."""

    def forward(self, segmap: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Return gamma and beta at `size`."""
        hidden = self.mlp_shared(F.interpolate(segmap, size=size, mode="nearest"))
        return self.mlp_gamma(hidden), self.mlp_beta(hidden)


class ACE(nn.Module):
    """SEAN's normalisation, one region of one image after the other."""

    def __init__(self, channels: int, label_nc: int, style: int = 512, use_rgb: bool = True, hidden: int = 128) -> None:
        super().__init__()
        self.use_rgb = use_rgb
        self.Spade = SpadeMaps(channels, label_nc, "batch", hidden)
        self.blending_gamma = nn.Parameter(torch.zeros(1))
        self.blending_beta = nn.Parameter(torch.zeros(1))
        self.noise_var = nn.Parameter(torch.zeros(channels))
        self.param_free_norm = free_norm("batch", channels)
        self.style, self.label_nc = style, label_nc
        if use_rgb:
            for k in range(label_nc):
                setattr(self, f"fc_mu{k}", nn.Linear(style, style))
            self.conv_gamma = nn.Conv2d(style, channels, 3, padding=1)
            self.conv_beta = nn.Conv2d(style, channels, 3, padding=1)

    def forward(self, x: Tensor, segmap: Tensor, style_codes: Tensor | None = None, obj_dic: dict | None = None) -> Tensor:
        """Return the modulated x; style_codes (B, K, style)."""
        noise = torch.randn(x.shape[0], x.shape[3], x.shape[2], 1).to(x.device, x.dtype)
        normalized = self.param_free_norm(x + (noise * self.noise_var).transpose(1, 3))
        gamma, beta = self.Spade(segmap, x.shape[2:])
        if self.use_rgb:
            assert style_codes is not None
            masks = F.interpolate(segmap, size=x.shape[2:], mode="nearest")
            images = []
            for b in range(x.shape[0]):
                image = torch.zeros(self.style, *x.shape[2:], dtype=x.dtype, device=x.device)
                for k in range(self.label_nc):
                    member = masks[b, k] != 0
                    if member.any():
                        code = F.relu(getattr(self, f"fc_mu{k}")(style_codes[b, k]))
                        image = torch.where(member, code[:, None, None], image)
                images.append(image)
            style_map = torch.stack(images)
            a, c = torch.sigmoid(self.blending_gamma), torch.sigmoid(self.blending_beta)
            gamma = a * self.conv_gamma(style_map) + (1 - a) * gamma
            beta = c * self.conv_beta(style_map) + (1 - c) * beta
        return normalized * (1 + gamma) + beta


class Zencoder(nn.Module):
    """SEAN's style encoder: features at half resolution, then the mean of each region, looped."""

    def __init__(self, style: int = 512, width: int = 32) -> None:
        super().__init__()

        def unit(channels: int) -> list[nn.Module]:
            return [nn.InstanceNorm2d(channels), nn.LeakyReLU(0.2)]

        w = width
        self.model = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(3, w, 3), *unit(w),
            nn.Conv2d(w, 2 * w, 3, stride=2, padding=1), *unit(2 * w),
            nn.Conv2d(2 * w, 4 * w, 3, stride=2, padding=1), *unit(4 * w),
            nn.ConvTranspose2d(4 * w, 8 * w, 3, stride=2, padding=1, output_padding=1), *unit(8 * w),
            nn.ReflectionPad2d(1), nn.Conv2d(8 * w, style, 3), nn.Tanh(),
        )  # fmt: skip

    def forward(self, input: Tensor, segmap: Tensor) -> Tensor:
        """Return codes (B, K, style); the code of an absent region is zero."""
        features = self.model(input)
        masks = F.interpolate(segmap, size=features.shape[2:], mode="nearest")
        rows = []
        for b in range(features.shape[0]):
            for k in range(masks.shape[1]):
                member = masks[b, k] != 0
                zero = features.new_zeros(features.shape[1])
                rows.append(features[b][:, member].mean(1) if member.any() else zero)
        return torch.stack(rows).view(features.shape[0], masks.shape[1], -1)


class ClassAffine(nn.Module):
    """One scale and one shift per class; the class of a pixel is the largest channel of the mask."""

    def __init__(self, label_nc: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(label_nc, channels))
        self.bias = nn.Parameter(torch.zeros(label_nc, channels))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return x * weight[class] + bias[class]."""
        label = mask.argmax(1)
        weight = F.embedding(label, self.weight).permute(0, 3, 1, 2)
        return x * weight + F.embedding(label, self.bias).permute(0, 3, 1, 2)


class CLADE(nn.Module):
    """Class-adaptive normalisation."""

    def __init__(self, channels: int, label_nc: int, norm: str = "batch") -> None:
        super().__init__()
        self.param_free_norm = free_norm(norm, channels)
        self.class_specified_affine = ClassAffine(label_nc, channels)

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        """Return the modulated x."""
        mask = F.interpolate(segmap, size=x.shape[2:], mode="nearest")
        return self.class_specified_affine(self.param_free_norm(x), mask)


class PositionalAffine(ClassAffine):
    """Both scaled by what 1x1 convolutions make of the position in the region."""

    def __init__(self, label_nc: int, channels: int) -> None:
        super().__init__(label_nc, channels)
        self.dist_conv_w, self.dist_conv_b = nn.Conv2d(2, 1, 1), nn.Conv2d(2, 1, 1)

    def forward(self, x: Tensor, mask: Tensor, distance: Tensor) -> Tensor:  # type: ignore[override]
        """Return x * weight[class] * (1 + w(distance)) + bias[class] * (1 + b(distance))."""
        label, distance = mask.argmax(1), F.interpolate(distance, size=x.shape[2:], mode="nearest")
        weight = F.embedding(label, self.weight).permute(0, 3, 1, 2) * (1 + self.dist_conv_w(distance))
        return x * weight + F.embedding(label, self.bias).permute(0, 3, 1, 2) * (1 + self.dist_conv_b(distance))


class PositionalCLADE(CLADE):
    """CLADE-ICPE."""

    def __init__(self, channels: int, label_nc: int, norm: str = "batch") -> None:
        super().__init__(channels, label_nc, norm)
        self.class_specified_affine = PositionalAffine(label_nc, channels)

    def forward(self, x: Tensor, segmap: Tensor, input_dist: Tensor | None = None) -> Tensor:
        """Return the modulated x; input_dist (B, 2, h, w)."""
        mask = F.interpolate(segmap, size=x.shape[2:], mode="nearest")
        return self.class_specified_affine(self.param_free_norm(x), mask, input_dist)


class ResBlock(nn.Module):
    """Residual block; `name` is the stem of its normalisations (norm or ace), `make` builds one."""

    def __init__(self, fin: int, fout: int, name: str, make, spectral: bool) -> None:
        super().__init__()
        middle = min(fin, fout)
        self.learned_shortcut = fin != fout
        self.stem = name
        self.conv_0 = maybe_spectral(nn.Conv2d(fin, middle, 3, padding=1), spectral)
        self.conv_1 = maybe_spectral(nn.Conv2d(middle, fout, 3, padding=1), spectral)
        if self.learned_shortcut:
            self.conv_s = maybe_spectral(nn.Conv2d(fin, fout, 1, bias=False), spectral)
        setattr(self, f"{name}_0", make(fin))
        setattr(self, f"{name}_1", make(middle))
        if self.learned_shortcut:
            setattr(self, f"{name}_s", make(fin))

    def forward(self, x: Tensor, *condition) -> Tensor:
        """Return shortcut(x) + conv_1(act(norm_1(conv_0(act(norm_0(x))))))."""
        norm = {i: getattr(self, f"{self.stem}_{i}", None) for i in "s01"}
        shortcut = self.conv_s(norm["s"](x, *condition)) if self.learned_shortcut else x
        x = self.conv_0(F.leaky_relu(norm["0"](x, *condition), 0.2))
        return shortcut + self.conv_1(F.leaky_relu(norm["1"](x, *condition), 0.2))


class Generator(nn.Module):
    """Shell of the three generators: first layer, seven (eight) residual blocks, last convolution, tanh."""

    def __init__(
        self,
        ngf: int,
        semantic_nc: int,
        size: tuple[int, int],
        make,
        *,
        stem: str = "norm",
        upsampling: str = "normal",
        spectral: bool = True,
        z_dim: int = 0,
    ) -> None:
        super().__init__()
        factor = 2 ** UPSAMPLINGS[upsampling]
        self.start = (size[0] // factor, size[1] // factor)
        self.upsampling, self.z_dim, self.ngf = upsampling, z_dim, ngf
        if z_dim:
            self.fc = nn.Linear(z_dim, 16 * ngf * self.start[0] * self.start[1])
        else:
            self.fc = nn.Conv2d(semantic_nc, 16 * ngf, 3, padding=1)
        widths = {
            "head_0": (16, 16), "G_middle_0": (16, 16), "G_middle_1": (16, 16),
            "up_0": (16, 8), "up_1": (8, 4), "up_2": (4, 2), "up_3": (2, 1),
        }  # fmt: skip
        for name, (fin, fout) in widths.items():
            setattr(self, name, ResBlock(fin * ngf, fout * ngf, stem, lambda c, n=name: make(c, n), spectral))
        last = ngf
        if upsampling == "most":
            self.up_4 = ResBlock(ngf, ngf // 2, stem, lambda c: make(c, "up_4"), spectral)
            last = ngf // 2
        self.conv_img = nn.Conv2d(last, 3, 3, padding=1)
        self.up = nn.Upsample(scale_factor=2)

    def pre_tanh(self, segmap: Tensor, *more, z: Tensor | None = None) -> Tensor:
        """Return what goes into the last tanh."""
        if self.z_dim:
            x = self.fc(z).view(-1, 16 * self.ngf, *self.start)
        else:
            x = self.fc(F.interpolate(segmap, size=self.start))
        x = self.up(self.head_0(x, segmap, *more))
        x = self.G_middle_0(x, segmap, *more)
        if self.upsampling in ("more", "most"):
            x = self.up(x)
        x = self.up(self.G_middle_1(x, segmap, *more))
        x = self.up(self.up_0(x, segmap, *more))
        x = self.up(self.up_1(x, segmap, *more))
        x = self.up(self.up_2(x, segmap, *more))
        x = self.up_3(x, segmap, *more)
        if self.upsampling == "most":
            x = self.up_4(self.up(x), segmap, *more)
        return self.conv_img(F.leaky_relu(x, 0.2))


class SPADEGenerator(Generator):
    """SPADE."""

    def __init__(
        self,
        ngf: int,
        label_nc: int,
        size: tuple[int, int],
        *,
        norm: str = "batch",
        hidden: int = 128,
        ks: int = 3,
        **kw,
    ) -> None:
        super().__init__(ngf, label_nc, size, lambda c, n: SPADE(c, label_nc, norm, hidden, ks), **kw)

    def forward(self, input: Tensor, z: Tensor | None = None) -> Tensor:
        """Return the image; input (B, K, H, W)."""
        return torch.tanh(self.pre_tanh(input, z=z))


class CLADEGenerator(Generator):
    """CLADE, or CLADE-ICPE with ``positional``."""

    def __init__(
        self, ngf: int, label_nc: int, size: tuple[int, int], *, norm: str = "batch", positional: bool = False, **kw
    ) -> None:
        kind = PositionalCLADE if positional else CLADE
        super().__init__(ngf, label_nc, size, lambda c, n: kind(c, label_nc, norm), **kw)

    def forward(self, input: Tensor, z: Tensor | None = None, input_dist: Tensor | None = None) -> Tensor:
        """Return the image; input (B, K, H, W), input_dist (B, 2, H, W) for ``positional`` alone."""
        return torch.tanh(self.pre_tanh(input, *(() if input_dist is None else (input_dist,)), z=z))


class SEANGenerator(Generator):
    """SEAN with its style encoder."""

    def __init__(
        self,
        ngf: int,
        label_nc: int,
        size: tuple[int, int],
        *,
        style: int = 512,
        hidden: int = 128,
        width: int = 32,
        **kw,
    ) -> None:
        super().__init__(ngf, label_nc, size, lambda c, n: ACE(c, label_nc, style, n != "up_3", hidden), stem="ace", **kw)
        self.Zencoder = Zencoder(style, width)

    def forward(self, input: Tensor, rgb_img: Tensor, obj_dic: dict | None = None) -> Tensor:
        """Return the image; input (B, K, H, W), rgb_img (B, 3, H, W)."""
        return torch.tanh(self.pre_tanh(input, self.Zencoder(rgb_img, input), obj_dic))


class ConvEncoder(nn.Module):
    """The image encoder of SPADE's VAE."""

    def __init__(self, ndf: int = 64, z_dim: int = 256, crop: int = 256, spectral: bool = True) -> None:
        super().__init__()
        widths = [3, ndf, 2 * ndf, 4 * ndf, 8 * ndf, 8 * ndf] + ([8 * ndf] if crop >= 256 else [])
        self.depth = len(widths) - 1
        for i, (fin, fout) in enumerate(zip(widths, widths[1:], strict=False), start=1):
            conv = maybe_spectral(nn.Conv2d(fin, fout, 3, stride=2, padding=1, bias=False), spectral)
            setattr(self, f"layer{i}", nn.Sequential(conv, nn.InstanceNorm2d(fout)))
        self.crop = 256 if crop >= 256 else 128
        self.fc_mu = nn.Linear(8 * ndf * 16, z_dim)
        self.fc_var = nn.Linear(8 * ndf * 16, z_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance."""
        if x.shape[2:] != (self.crop, self.crop):
            x = F.interpolate(x, size=(self.crop, self.crop), mode="bilinear")
        x = self.layer1(x)
        for i in range(2, self.depth + 1):
            x = getattr(self, f"layer{i}")(F.leaky_relu(x, 0.2))
        x = F.leaky_relu(x, 0.2).flatten(1)
        return self.fc_mu(x), self.fc_var(x)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter and running statistic that starts at 0 or 1, so that a mistake in any of them
    shows.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(model.state_dict().items()):
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif name.endswith(("running_mean", "noise_var", "blending_gamma", "blending_beta", "bias")):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return model


def blobs(batch: int, regions: int, height: int, width: int, seed: int = 0, ignored: bool = False) -> Tensor:
    """Return piecewise constant labels (B, H, W) int64 from random ellipses; -1 is a pixel of no region."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(height).view(-1, 1).float()
    x = torch.arange(width).view(1, -1).float()
    labels = torch.zeros(batch, height, width, dtype=torch.int64)
    for b in range(batch):
        for i in range(12):
            cy, cx, ry, rx = (torch.rand(4, generator=g) * torch.tensor([height, width, height / 3, width / 3])).tolist()
            inside = ((y - cy) / (ry + 2)) ** 2 + ((x - cx) / (rx + 2)) ** 2 < 1
            label = int(torch.randint(regions, (1,), generator=g))
            labels[b][inside] = -1 if ignored and i % 5 == 4 else label
    return labels


def onehot(labels: Tensor, regions: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the float map (B, K, H, W) of labels; a pixel of no region is all zero."""
    channels = torch.arange(regions).view(1, -1, 1, 1)
    return (labels[:, None] == channels).to(dtype)
