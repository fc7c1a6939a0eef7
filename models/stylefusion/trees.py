"""The trees of regions of StyleFusion's domains (Appendix A.1), each with the S space of its StyleGAN2."""

from __future__ import annotations

from mixsyn_fast import StyleLayout
from mixsyn_fast.layers import FusionConfig

FACES = FusionConfig(
    {
        "all": ("face", "bg_hair_clothes"),
        "face": ("skin_mouth", "eyes"),
        "skin_mouth": ("mouth", "skin"),
        "bg_hair_clothes": ("bg_clothes", "hair"),
        "bg_clothes": ("clothes", "bg"),
    }
)
CARS = FusionConfig(
    {
        "all": ("car", "background"),
        "car": ("car_body", "wheels"),
        "background": ("background_top", "background_bottom"),
    },
    StyleLayout.stylegan2(512),
)
CHURCHES = FusionConfig({"all": ("church", "background")}, StyleLayout.stylegan2(256))
