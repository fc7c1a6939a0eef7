"""The command mixsyn-fast, and what `import mixsyn_fast` costs."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys

import pytest

from mixsyn_fast import __version__, backend, cli


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out.strip() == f"mixsyn_fast {__version__}"


@pytest.mark.parametrize("arguments", [[], ["--nonsense"], ["nonsense"], ["data"], ["mixsyn"], ["mixsyn", "nonsense"]])
def test_unknown_commands_are_errors(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2 and "usage: mixsyn-fast" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--nonsense", "--js", "stray"])
def test_unknown_options_are_errors(word, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["doctor", word])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and word in said and "mixsyn-fast doctor --help" in said


def test_help_lists_commands_by_paper(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    said = capsys.readouterr().out
    assert caught.value.code == 0
    places = [
        said.index(words) for words in ("  doctor ", "  train ", "MixSyn: ", "  mixsyn compose ", "  mixsyn evaluate ")
    ]
    assert places == sorted(places)
    for old in cli._OLD_WORDS:
        assert f"\n  {old} " not in said


@pytest.mark.parametrize("old", cli._OLD_WORDS)
def test_old_words_still_run_and_say_the_new_ones(old, capsys):
    assert cli.main([*old.split(), "--print-config"]) == 0
    said = capsys.readouterr()
    assert said.err == f"mixsyn-fast {old}: now called mixsyn-fast {cli._OLD_WORDS[old]}\n"
    assert cli.main([*cli._OLD_WORDS[old].split(), "--print-config"]) == 0
    again = capsys.readouterr()
    assert again.out == said.out and again.err == ""


@pytest.mark.parametrize("paper", [words.split()[0] for words in cli._BY_WORDS if words.endswith(" evaluate")])
def test_evaluate_of_a_paper_is_the_papers_evaluate(paper, capsys):
    assert cli.main(["evaluate", paper, "--seed", "3", "--print-config"]) == 0
    said = capsys.readouterr()
    assert cli.main([paper, "evaluate", "--seed", "3", "--print-config"]) == 0
    assert capsys.readouterr() == said and json.loads(said.out)["seed"] == 3 and said.err == ""
    assert {"mixsyn", "clvae"} <= {words.split()[0] for words in cli._BY_WORDS if words.endswith(" evaluate")}


def test_evaluate_of_no_paper_is_an_error(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["evaluate", "doctor"])
    assert caught.value.code == 2 and "doctor" in capsys.readouterr().err


def test_doctor_needs_no_tyro(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)
    for words in (["doctor"], ["doctor", "--json"]):
        assert cli.main(words) == 0
    assert '"healthy": true' in capsys.readouterr().out
    assert cli.main(["doctor", "--no-json"]) == 2
    assert "pip install 'mixsyn_fast[models]'" in capsys.readouterr().err


def test_doctor_names_every_op_on_every_device(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert set(facts["ops"]) == set(backend.registered_ops())
    for devices in facts["ops"].values():
        assert set(devices) == {"cpu", "cuda"}
        for choice in devices.values():
            assert choice["backend"] in ("native", "triton", "reference", "none") and choice["reason"]
        assert devices["cpu"]["backend"] == "native" or devices["cpu"]["losses"]
    assert facts["versions"]["mixsyn_fast"] == __version__ and facts["versions"]["torch"]
    assert facts["build"]["loaded"] and facts["build"]["cache"] and facts["build"]["manifest"]["compiler"]
    assert facts["healthy"] is True


def test_doctor_speaks_to_people(capsys):
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    for words in ("versions", "extension", "cache:", *backend.registered_ops(), "native", "torch"):
        assert words in said


def test_doctor_without_an_extension(monkeypatch, capsys):
    sick = {
        "loaded": False, "origin": None, "path": None, "failure": "no C++ compiler found\nTo mend it: install g++",
        "cause": "compiler", "notes": [], "seconds": 0.0, "cache": "/cache", "manifest": {}, "build_info": {},
    }  # fmt: skip
    monkeypatch.setattr("mixsyn_fast.extension.build_report", lambda: sick)
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "not available: no C++ compiler found" in said and "To mend it: install g++" in said


def test_import_adds_little_to_importing_torch():
    """At most 0.3 s beyond `import torch`, in the middle of three tries."""
    seconds = []
    for _ in range(3):
        said = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", "import torch\nimport mixsyn_fast"],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
        found = re.search(r"^import time:\s+\d+ \|\s+(\d+) \| mixsyn_fast$", said, re.MULTILINE)
        assert found is not None
        seconds.append(int(found[1]) / 1e6)
    assert statistics.median(seconds) <= 0.3, seconds
