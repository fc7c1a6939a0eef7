"""Processor and clock."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from mixsyn_fast import machine


def test_the_processor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: "processor : 0\nmodel name\t: Some CPU: 9000 \nmodel name : another\n")
    assert machine.cpu_name() == "Some CPU: 9000"
    monkeypatch.setattr(Path, "read_text", lambda _: "processor : 0\n")  # as on ARM
    assert machine.cpu_name() == (machine.platform.processor() or machine.platform.machine())

    def missing(_: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert machine.cpu_name()


def test_cores_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert machine.cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.cores() == (os.cpu_count() or 1)


def test_the_clock_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(torch.cuda, "synchronize", seen.append)
    first = machine.now(torch.device("cpu"))
    assert seen == [] and machine.now(torch.device("cuda")) >= first and seen == [torch.device("cuda")]


def test_time_limit() -> None:
    with machine.time_limit(5.0):
        pass
    with pytest.raises(TimeoutError, match="not finished after"), machine.time_limit(0.05):
        try:
            time.sleep(2.0)
        except Exception:  # the limit is no ordinary exception: compilers wrap those
            pytest.fail("the limit was caught")
    time.sleep(0.06)  # and it is off afterwards
