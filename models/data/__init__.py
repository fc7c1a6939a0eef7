"""Data for demos, tests, benchmarks and training: folders of image + label pairs, pictures drawn by code."""

from .folder import Pair, list_pairs, load_folder, read_pair
from .procedural import (
    FACADE_CLASSES,
    FACE_CLASSES,
    NUM_CLASSES,
    STREET_CLASSES,
    colorize,
    draw,
    draw_batch,
    draw_facade,
    draw_face,
    draw_street,
    palette,
)

__all__ = [
    "FACADE_CLASSES",
    "FACE_CLASSES",
    "NUM_CLASSES",
    "STREET_CLASSES",
    "Pair",
    "colorize",
    "draw",
    "draw_batch",
    "draw_facade",
    "draw_face",
    "draw_street",
    "list_pairs",
    "load_folder",
    "palette",
    "read_pair",
]
