"""StyleGAN2: a generator with access to its S space, and its discriminator.

Karras, Laine, Aittala, Hellsten, Lehtinen, Aila: Analyzing and Improving the Image Quality of StyleGAN, CVPR 2020. The S
space is that of Wu, Lischinski, Shechtman: StyleSpace Analysis, CVPR 2021.
"""

from .config import Config
from .discriminator import Discriminator
from .generator import Generator, Noise

__all__ = ["Config", "Discriminator", "Generator", "Noise"]
