"""Choice of backend and plan, announcements, strict mode."""

from __future__ import annotations

import warnings

import pytest
import torch

import mixsyn_fast
from mixsyn_fast import FallbackWarning, backend, use_backend, use_plan


def test_context_managers_nest_and_restore() -> None:
    with use_backend("reference"), use_plan("dense"):
        assert backend.current_backend() == "reference" and backend.current_plan() == "dense"
        with pytest.raises(RuntimeError), use_backend("native"):
            raise RuntimeError
        assert backend.current_backend() == "reference"
    assert backend.current_backend() == "auto" and backend.current_plan() == "auto"


def test_a_plain_statement_chooses_from_here_on() -> None:
    choice = use_backend("reference")
    try:
        assert backend.current_backend() == "reference"
        with pytest.raises(ValueError, match="use_plan: name"):
            use_plan("fast")
    finally:
        choice.__exit__()
    assert backend.current_backend() == "auto"


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="use_backend: name: expected one of auto"), use_backend("cuda"):
        pass
    with pytest.raises(ValueError, match="use_plan: name: expected one of auto"), use_plan("sparse"):
        pass
    with pytest.raises(ValueError, match="explain: op"):
        backend.explain("softmax", "cpu")


def test_every_op_is_explained_on_every_device() -> None:
    for op in backend.registered_ops():
        assert backend.explain(op, "cpu") == ("native", "C++ kernel")
        name, reason = backend.explain(op, "cuda")
        assert name in backend.BACKENDS and reason
        with use_backend("reference"):
            assert backend.explain(op, "cpu")[0] == "reference"


def test_a_fallback_is_announced_once_or_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_announced", set())
    monkeypatch.setattr(backend.extension, "ensure_loaded", lambda: False)
    monkeypatch.setattr(backend.extension, "failure", lambda: "no compiler on this machine")
    labels = torch.zeros(1, 2, 2, dtype=torch.int32)
    monkeypatch.setenv("MIXSYN_FAST_STRICT", "0")
    with pytest.warns(FallbackWarning, match="label_patterns: .*no compiler on this machine.*mixsyn-fast doctor"):
        mixsyn_fast.label_patterns(labels, 1, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixsyn_fast.label_patterns(labels, 1, 0)
    monkeypatch.setenv("MIXSYN_FAST_STRICT", "1")
    with pytest.raises(RuntimeError, match="MIXSYN_FAST_STRICT"):
        mixsyn_fast.label_patterns(labels, 1, 0)


def test_triton_where_there_is_no_triton_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXSYN_FAST_STRICT", "1")
    labels = torch.zeros(1, 2, 2, dtype=torch.int32)
    with use_backend("triton"), pytest.raises(RuntimeError, match="no Triton kernel of label_patterns"):
        mixsyn_fast.label_patterns(labels, 1, 0)


def test_warmup_reports_seconds() -> None:
    seconds = mixsyn_fast.warmup()
    assert set(seconds) == {"extension", "first_call"} and min(seconds.values()) >= 0
