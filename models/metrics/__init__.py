"""Judging pictures: distances to a target, distances of sets, diversity, per picture and per region."""

from .diversity import ClassDiversity, class_diversity, pairwise_lpips, top1_similarity
from .fid import FIDResult, Gaussian, InceptionFeatures, fid_of_features, find_inception, frechet_distance
from .intervals import Interval, intervals
from .locality import Change, change_of_edit
from .lpips import LPIPS
from .pixels import byte_difference, mean_over, psnr, rmse, ssim, ssim_map
from .style import StyleDistance

__all__ = [
    "LPIPS",
    "Change",
    "ClassDiversity",
    "FIDResult",
    "Gaussian",
    "InceptionFeatures",
    "Interval",
    "StyleDistance",
    "byte_difference",
    "change_of_edit",
    "class_diversity",
    "fid_of_features",
    "find_inception",
    "frechet_distance",
    "intervals",
    "mean_over",
    "pairwise_lpips",
    "psnr",
    "rmse",
    "ssim",
    "ssim_map",
    "top1_similarity",
]
