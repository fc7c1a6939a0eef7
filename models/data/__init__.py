"""Data for training, evaluation, demos and tests: the papers' sets, pictures drawn by code, batches with region maps.

For example::

    source = open_source("datasets/CelebAMask-HQ", split="train")
    dataset = RegionDataset(source, 256, crop="random", load_size=286, flip=0.5)
    batch = next(Loader(dataset, batch_size=8, workers=4, device="cuda"))  # .image, .regions
"""

from .batch import Batch, Collate, edges_of_instances
from .dataset import Item, RegionDataset
from .folder import Pair, list_pairs, load_folder, read_pair
from .loader import Loader
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
from .region_types import MergedSource, RegionTypes, merged, region_types
from .sets import KINDS, LABEL_SETS, JoinedSource, ProceduralSource, guess_kind, open_source
from .sheets import contact_sheet, to_uint8
from .source import FileSource, LabelSet, Record, Sample, Source
from .statistics import Statistics, statistics

__all__ = [
    "FACADE_CLASSES",
    "FACE_CLASSES",
    "KINDS",
    "LABEL_SETS",
    "NUM_CLASSES",
    "STREET_CLASSES",
    "Batch",
    "Collate",
    "FileSource",
    "Item",
    "JoinedSource",
    "LabelSet",
    "Loader",
    "MergedSource",
    "Pair",
    "ProceduralSource",
    "Record",
    "RegionDataset",
    "RegionTypes",
    "Sample",
    "Source",
    "Statistics",
    "colorize",
    "contact_sheet",
    "draw",
    "draw_batch",
    "draw_facade",
    "draw_face",
    "draw_street",
    "edges_of_instances",
    "guess_kind",
    "list_pairs",
    "load_folder",
    "merged",
    "open_source",
    "palette",
    "read_pair",
    "region_types",
    "statistics",
    "to_uint8",
]
