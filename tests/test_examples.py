"""The examples run as they stand: report, difference, ratio. Those that need other libraries run in tests/compat."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.examples import EXAMPLES, check_what_it_says

OWN = ("accelerate_portrait", "accelerate_sdm")


@pytest.mark.parametrize("name", OWN)
def test_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    check_what_it_says(capsys.readouterr().out)


def test_every_example_is_run_by_a_test() -> None:
    compat = (Path(__file__).parent / "compat" / "test_examples.py").read_text()
    others = {path.stem for path in EXAMPLES.glob("accelerate_*.py")} - set(OWN)
    assert others and all(f'"{name}"' in compat for name in others)
