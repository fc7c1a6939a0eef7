"""What the tests of the examples share."""

from __future__ import annotations

import re
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def check_what_it_says(said: str) -> None:
    """Hold an example's output to what it promises: for every model a report, a difference of rounding, two times."""
    reports, times = (
        said.count("AccelerationReport"),
        re.findall(r": (\d+) ms as it is, (\d+) ms accelerated: [\d.]+ x", said),
    )
    differences = [float(text) for text in re.findall(r"largest difference:? (\d\.\de[+-]\d+) of", said)]
    assert reports == len(times) == len(differences) > 0, said
    assert all(difference < 1e-3 for difference in differences), said
    assert "x SPADE normalisation" in said
