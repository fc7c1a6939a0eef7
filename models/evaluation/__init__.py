"""Judging pictures: distances to a target, distances of sets, diversity, per picture and per region."""

from .fid import FIDResult, Gaussian, InceptionFeatures, fid_of_features, find_inception, frechet_distance
from .metrics import Interval, intervals, mean_over, psnr, rmse, ssim, ssim_map

__all__ = [
    "FIDResult",
    "Gaussian",
    "InceptionFeatures",
    "Interval",
    "fid_of_features",
    "find_inception",
    "frechet_distance",
    "intervals",
    "mean_over",
    "psnr",
    "rmse",
    "ssim",
    "ssim_map",
]
