"""The type check of `make lint`: what it refuses, and that types are shipped."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
STRICT_ERROR = "mixsyn_fast/ops/region_norm.py:1: error: Missing return type annotation  [no-untyped-def]"
OTHER_ERRORS = "models/sean.py:1: error: One  [misc]\nmodels/sean.py:2: note: More\nmodels/sean.py:3: error: Two  [misc]"


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("typecheck", ROOT / ".ci" / "typecheck.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "COUNT", tmp_path / "type_errors")
    return module


def test_no_error_in_a_strict_room(check: ModuleType) -> None:
    status, words = check.judge(f"{OTHER_ERRORS}\n{STRICT_ERROR}", 2)
    assert status == 1 and STRICT_ERROR in words and "models/sean.py" not in words


@pytest.mark.parametrize(("allowed", "status"), [(1, 1), (2, 0), (3, 0)])
def test_the_number_may_only_fall(check: ModuleType, allowed: int, status: int) -> None:
    got, words = check.judge(OTHER_ERRORS, allowed)
    assert got == status and ("models/sean.py:3" in words) == (status == 1)
    assert ("--write" in words) == (allowed == 3) and not check.COUNT.exists()


@pytest.mark.parametrize(("allowed", "written"), [(1, None), (2, None), (3, "2\n")])
def test_write_never_raises_it(check: ModuleType, allowed: int, written: str | None) -> None:
    check.judge(OTHER_ERRORS, allowed, write=True)
    assert (check.COUNT.read_text() if check.COUNT.exists() else None) == written


def test_strict_rooms_exist(check: ModuleType) -> None:
    assert all((ROOT / place).exists() for place in check.STRICT)
    assert int((ROOT / ".ci" / "type_errors").read_text()) >= 0


def test_types_are_shipped() -> None:
    """PEP 561: the marker is in the package, and setup.py takes it along (tests/build/test_install.py unpacks a wheel)."""
    assert (ROOT / "mixsyn_fast" / "py.typed").is_file()
