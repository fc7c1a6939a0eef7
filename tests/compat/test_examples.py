"""The examples of other libraries run as they stand."""

from __future__ import annotations

import runpy

import pytest

from tests.examples import EXAMPLES, check_what_it_says


@pytest.mark.parametrize("package, name", [("monai", "accelerate_monai"), ("diffusers", "accelerate_diffusers")])
def test_an_example(package: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed: make compat")
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr()
    if end.value.code == 2:
        pytest.skip(said.err.strip())  # installed, but something that it wants is not
    assert not end.value.code
    check_what_it_says(said.out)
