"""Judging a model or a folder of pictures: `mixsyn-fast evaluate`, `mixsyn-fast parse`."""
