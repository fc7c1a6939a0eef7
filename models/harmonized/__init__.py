"""Harmonized regional style transfer and manipulation (Wang, Tang, Zhang, Wu, Dong, Computational Visual Media 2023)."""
