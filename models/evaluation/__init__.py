"""Judging pictures: distances to a target, distances of sets, diversity, per picture and per region."""

from .diversity import ClassDiversity, class_diversity, pairwise_lpips, top1_similarity
from .face_parser import FaceParser, load_face_parser
from .fid import FIDResult, Gaussian, InceptionFeatures, fid_of_features, find_inception, frechet_distance
from .lpips import LPIPS
from .metrics import Interval, intervals, mean_over, psnr, rmse, ssim, ssim_map

__all__ = [
    "LPIPS",
    "ClassDiversity",
    "FIDResult",
    "FaceParser",
    "Gaussian",
    "InceptionFeatures",
    "Interval",
    "class_diversity",
    "fid_of_features",
    "find_inception",
    "frechet_distance",
    "intervals",
    "load_face_parser",
    "mean_over",
    "pairwise_lpips",
    "psnr",
    "rmse",
    "ssim",
    "ssim_map",
    "top1_similarity",
]
