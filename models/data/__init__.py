"""Data for training, evaluation, demos and tests: the papers' sets, pictures drawn by code, batches with region maps.

For example::

    source = open_source("datasets/CelebAMask-HQ", split="train")
    dataset = RegionDataset(source, 256, crop="random", load_size=286, flip=0.5)
    batch = next(Loader(dataset, batch_size=8, workers=4, device="cuda"))  # .image, .regions
"""

from .batch import Batch, Collate, ImageBatch, Item, Packed
from .classes import FACADE_CLASSES, FACE_CLASSES, STREET_CLASSES
from .dataset import Collated, RegionDataset, TrainingSet, edges_of_instances, first_items
from .drawn.drawing import NUM_CLASSES, draw, draw_batch
from .drawn.facades import draw_facade
from .drawn.faces import draw_face
from .drawn.streets import draw_street
from .latents import LatentBatch, LatentDataset
from .loader import Loader
from .options import DataOptions, ReaderOptions
from .palette import colorize, palette
from .rarity import Rarity, kept_rarity, rarity
from .region_types import MergedSource, RegionTypes, merged, region_types
from .sets import KINDS, LABEL_SETS, JoinedSource, ProceduralSource, guess_kind, open_source
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
    "Collated",
    "DataOptions",
    "FileSource",
    "ImageBatch",
    "Item",
    "JoinedSource",
    "LabelSet",
    "LatentBatch",
    "LatentDataset",
    "Loader",
    "MergedSource",
    "Packed",
    "ProceduralSource",
    "Rarity",
    "ReaderOptions",
    "Record",
    "RegionDataset",
    "RegionTypes",
    "Sample",
    "Source",
    "Statistics",
    "TrainingSet",
    "colorize",
    "draw",
    "draw_batch",
    "draw_facade",
    "draw_face",
    "draw_street",
    "edges_of_instances",
    "first_items",
    "guess_kind",
    "kept_rarity",
    "merged",
    "open_source",
    "palette",
    "rarity",
    "region_types",
    "statistics",
]
