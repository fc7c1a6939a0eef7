"""The file of a trained generator."""

from __future__ import annotations

from ..model_file import ModelFile
from .config import Config

FILE = ModelFile("stylegan2", "StyleGAN2", Config)
"""What `unconditional.load_generator` reads, with the one network "generator"."""
