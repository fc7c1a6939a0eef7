"""Dataclass <-> command line <-> JSON: help from comments, every type there and back, errors that name the key."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixsyn_fast.models.settings import (
    differences,
    dumps,
    from_dict,
    positional,
    read,
    repeated,
    spelled,
    to_dict,
    together,
)
from mixsyn_fast.models.training.schedule import Schedule


@dataclass(frozen=True)
class Base:
    width: int = 64  # channels of the first layer
    # seconds that one step
    # may take at most
    limit: float = 1.5

    bare: str = "x"
    """a docstring tells more"""


@dataclass(frozen=True)
class Model(Base):
    width: int = 32  # channels, 100 % of them
    norm: Literal["batch", "instance"] = "batch"  # kind of normalisation
    size: tuple[int, int] = (64, 96)  # height, width in pixels
    blocks: tuple[str, ...] = ()  # names # with a hash

    def __post_init__(self) -> None:
        if self.width <= 0:
            raise ValueError(f"width: expected a positive number, got {self.width}")


@dataclass(frozen=True)
class Options:
    name: str  # of the run
    model: Model = field(default_factory=lambda: Model(width=8))  # the generator
    batch_size: int = 8  # images per step
    lr: float = 1e-4
    amp: bool = False
    clip: float | None = None  # largest norm of the gradient; none: no limit
    crop: int | tuple[int, int] = 128
    weights: str | None = None
    levels: Literal[1, 2, "all"] = 2
    _hidden: int = field(default=0, init=False)


def parse(*texts: str, kind: type = Options, **more: Any) -> Any:
    return read(kind, texts, prog="prog", **more)[0]


def refused(capsys: pytest.CaptureFixture[str], *texts: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parse("--name", "n", *texts)
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def help_of(kind: type) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        parse("--help", kind=kind)
    return " ".join(said.getvalue().split())


def test_defaults_survive_parsing() -> None:
    assert parse("--name", "first") == Options(name="first")


def test_every_option() -> None:
    texts = "--name n --model.width 4 --model.norm instance --model.size 32,48 --model.blocks up_3,up_2 --batch-size 2"
    texts += " --lr 3e-5 --amp --clip 0.5 --crop 64,32 --weights a.pth --levels all --model.limit 2"
    model = Model(width=4, norm="instance", size=(32, 48), blocks=("up_3", "up_2"), limit=2.0)
    expected = Options("n", model, 2, 3e-5, True, 0.5, (64, 32), "a.pth", "all")
    assert parse(*texts.split()) == expected
    off = parse("--name", "n", "--no-amp", "--clip", "none", "--crop", "64", "--weights", "None", "--levels", "1")
    assert (off.amp, off.clip, off.crop, off.weights, off.levels) == (False, None, 64, None, 1)
    assert type(off.levels) is int


def test_empty_tuple_and_negative_numbers() -> None:
    assert parse("--name", "n", "--model.blocks", "").model.blocks == ()
    assert parse("--name", "n", "--lr", "-1").lr == -1.0


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["--batch-size", "many"], "--batch-size: expected int, got 'many'"),
        (["--batch-size", "1.5"], "--batch-size: expected int, got '1.5'"),
        (["--lr", "nan"], "--lr: expected float, got 'nan'"),
        (["--clip", "inf"], "--clip: expected float|none, got 'inf'"),
        (["--model.norm", "layer"], "--model.norm: expected batch|instance, got 'layer'"),
        (["--model.size", "1,2,3"], "--model.size: expected int,int, got '1,2,3'"),
        (["--crop", "1,x"], "--crop: expected int|int,int, got '1,x'"),
        (["--levels", "3"], "--levels: expected 1|2|all, got '3'"),
    ],
)
def test_bad_values_are_errors(texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse("--name", "n", *texts)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["--batch", "4"], "Unrecognized options: --batch, 4"),  # abbreviations are errors
        (["--model.with", "4"], "Unrecognized options: --model.with"),
        (["--hidden", "4"], "Unrecognized options: --hidden"),
        (["stray"], "Unrecognized options: stray"),
        (["--lr"], "Missing value for argument '--lr'"),
        (["--lr", "--amp"], "Missing value for argument '--lr'"),
    ],
)
def test_words_that_no_option_takes_are_errors(capsys: pytest.CaptureFixture[str], texts: list[str], message: str) -> None:
    said = refused(capsys, *texts)
    assert message in said and "prog --help" in said and "\x1b" not in said


def test_long_file_names_stay_whole_in_errors(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert "x" * 300 in refused(capsys, "--" + "x" * 300)
    assert os.environ["COLUMNS"] == "40"


def test_field_without_default_is_required(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        parse("--lr", "1")
    said = capsys.readouterr().err
    assert "Required options" in said and "--name STR" in said
    (tmp_path / "c.json").write_text('{"name": "given", "model": {"size": [8, 8]}}')
    from_file = parse("--config", str(tmp_path / "c.json"), "--lr", "1")
    assert from_file == Options("given", Model(width=8, size=(8, 8)), lr=1.0)  # the section's own default of the rest


def test_help_is_the_comment() -> None:
    text = help_of(Options)
    assert "--name STR of the run (required)" in text
    assert "channels, 100 % of them (default: 8)" in text  # the nearest declaration, the section's own default
    assert "seconds that one step may take at most (default: 1.5)" in text  # from above, and from the base class
    assert "largest norm of the gradient; none: no limit (default: none)" in text
    assert "height, width in pixels (default: 64,96)" in text
    assert "names # with a hash (default: empty)" in text
    assert "--amp, --no-amp" in text
    assert "--model.norm batch|instance" in text
    assert "model options" in text and "the generator" in text
    assert "a docstring tells more (default: x)" in text
    assert "hidden" not in text


def test_class_without_source_has_empty_help() -> None:
    typed = make_dataclass("Typed", [("a", int, 1)])
    assert "--a INT (default: 1)" in help_of(typed)


def test_fields_without_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    config = parse("--name", "a", fixed=("model.width", "lr"))
    assert config.model.width == 8 and config.lr == 1e-4
    with pytest.raises(SystemExit):
        parse("--name", "a", "--model.width", "3", fixed=("model.width",))
    assert "--model.width" in capsys.readouterr().err
    with pytest.raises(TypeError, match="model.depth: no field of Options"):
        parse("--name", "a", fixed=("model.depth",))


@dataclass(frozen=True)
class Words:
    first: str | None = positional(None)  # a word
    rest: tuple[str, ...] = repeated()  # any text, commas stay
    out: Path = Path("x.png")  # a file
    deep: bool = True  # a switch


@dataclass(frozen=True)
class Rates:
    fast: bool = True  # a switch of a section
    lr: float = 0.5  # a rate

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr: expected a positive number, got {self.lr}")


@dataclass(frozen=True)
class Nested:
    rates: Rates = field(default_factory=Rates)  # a section


def test_words_repeated_options_and_paths() -> None:
    assert parse("a,b", "--rest", "c,d=e", "--rest=f", "--no-deep", "--out", "y/z.png", kind=Words) == Words(
        "a,b", ("c,d=e", "f"), Path("y/z.png"), False
    )
    assert parse(kind=Words) == Words()
    assert from_dict(Words, json.loads(dumps(Words("w", ("a",))))) == Words("w", ("a",))
    assert to_dict(Words())["out"] == "x.png"


def test_sections_without_a_prefix() -> None:
    both = together("Both", words=Words, nested=Nested)
    found = parse("w", "--no-rates.fast", "--out", "o", kind=both)
    assert found.words == Words("w", out=Path("o")) and found.nested == Nested(Rates(False))
    assert parse("--rates.no-fast", kind=both).nested == Nested(Rates(False))
    assert to_dict(found)["nested"] == {"rates": {"fast": False, "lr": 0.5}}
    with pytest.raises(ValueError, match="^--rates.lr: expected a positive number, got -1.0$"):
        parse("--rates.lr", "-1", kind=both)
    assert parse("--rates.lr", "2", kind=both, fixed=("rates.fast",)).nested.rates.lr == 2


def test_messages_are_spelled_as_options() -> None:
    both = together("Both", words=Words, nested=Nested)
    assert spelled("rates: lr: expected", both) == "--rates.lr: expected"
    assert spelled("rates: expected", both) == "--rates: expected"
    assert spelled("first: expected: x", both) == "first: expected: x"
    assert spelled("out: is: a folder", both) == "--out: is: a folder"
    assert spelled("other: expected", both) == "other: expected"
    flags = together("All", options=make_dataclass("Options", [("batch_size", int, 4), ("drop_last", bool, True)]))
    assert spelled("batch_size: few (or drop_last=False)", flags) == "--batch-size: few (or --no-drop-last)"
    assert spelled("a: drop_last=True, last=True, batch_size=1", flags) == "a: --drop-last, last=True, batch_size=1"


def test_without_tyro_the_command_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tyro", None)
    with pytest.raises(ImportError, match=r"pip install 'mixsyn_fast\[models\]'"):
        parse("--name", "n")


def test_checks_of_the_dataclass_name_the_section() -> None:
    with pytest.raises(ValueError, match="^--model.width: expected a positive number, got 0$"):
        parse("--name", "n", "--model.width", "0")
    with pytest.raises(ValueError, match="^--width: expected a positive number, got -1$"):
        parse("--width", "-1", kind=Model)


def test_json_there_and_back() -> None:
    config = Options("n", Model(blocks=("a",)), clip=0.25, crop=(1, 2), levels="all")
    text = dumps(config)
    assert from_dict(Options, json.loads(text)) == config
    assert json.loads(text) == to_dict(config)
    assert to_dict(config)["model"]["size"] == [64, 96] and "_hidden" not in to_dict(config)
    assert dumps(to_dict(config)) == text


@given(
    st.builds(
        Options,
        st.text(),
        st.builds(Model, st.integers(1, 99), norm=st.sampled_from(["batch", "instance"]), blocks=st.tuples(st.text())),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.booleans(),
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
        st.integers() | st.tuples(st.integers(), st.integers()),
        st.none() | st.text(),
        st.sampled_from([1, 2, "all"]),
    )
)
def test_json_is_exact(config: Options) -> None:
    again = from_dict(Options, json.loads(dumps(config)))
    assert again == config and repr(again) == repr(config)  # repr tells 1 from 1.0 and from True


def changed(**values: Any) -> dict[str, Any]:
    return to_dict(Options("n")) | values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed(sise=1), "^Options: unknown sise$"),
        (changed(model={"width": 1, "depth": 2}), "^model: unknown model.depth$"),
        (changed(model=7), "^model: expected the fields of Model, got 7$"),
        (changed(batch_size="8"), "^batch_size: expected int, got '8'$"),
        (changed(batch_size=True), "^batch_size: expected int, got True$"),
        (changed(batch_size=8.0), "^batch_size: expected int, got 8.0$"),
        (changed(lr=float("inf")), "^lr: expected float, got inf$"),
        (changed(lr=None), "^lr: expected float, got None$"),
        (changed(amp=1), "^amp: expected bool, got 1$"),
        (changed(levels=True), r"^levels: expected 1\|2\|all, got True$"),
        (changed(crop=[1, 2, 3]), r"^crop: expected int\|int,int, got \[1, 2, 3\]$"),
        (changed(model=to_dict(Model()) | {"blocks": "up_3"}), r"^model.blocks: expected str,..., got 'up_3'$"),
        (changed(model=to_dict(Model()) | {"width": 0}), "^model: width: expected a positive number, got 0$"),
    ],
)
def test_bad_json_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(Options, values)


def test_missing_key_takes_the_default_or_is_named() -> None:
    values = changed(batch_size=3)
    del values["lr"], values["model"]["limit"]  # as a run written before these options were added
    config = from_dict(Options, values)
    assert (config.lr, config.model.limit, config.batch_size) == (1e-4, 1.5, 3)
    assert from_dict(Options, {"name": "n", "model": {"limit": 2.0}}).model == Model(width=8, limit=2.0)
    del values["name"]
    with pytest.raises(ValueError, match="^Options: missing name$"):
        from_dict(Options, values)


def test_integer_is_taken_for_a_float_and_stays_one() -> None:
    config = from_dict(Options, changed(lr=1, clip=2))
    assert (type(config.lr), type(config.clip)) == (float, float)


def test_differences() -> None:
    a = Options("n", Model(width=3))
    b = Options("n", Model(width=4), lr=0.5)
    assert differences(a, a) == []
    assert differences(a, b) == ["model.width: 3 -> 4", "lr: 0.0001 -> 0.5"]
    assert differences({"a": 1, "s": {"b": [1]}}, {"c": None, "s": {"b": [2]}}) == [
        "a: 1 -> absent",
        "s.b: [1] -> [2]",
        "c: absent -> null",
    ]
    assert differences(a, to_dict(b)) == differences(a, b)


@dataclass
class Unsupported:
    table: dict[str, int] = field(default_factory=dict)


def test_fields_named_like_our_arguments() -> None:
    assert parse("--kind", "linear", "--start", "0.5", kind=Schedule) == Schedule("linear", 0.5)


def test_types_without_an_option() -> None:
    with pytest.raises(TypeError, match=r"Unsupported.table: expected a type made of bool, .* got dict\[str, int\]"):
        from_dict(Unsupported, {})
    with pytest.raises(TypeError, match="expected a dataclass, got <class 'int'>"):
        from_dict(int, {})


def test_a_file_of_options_may_be_yaml_or_come_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "wide.yaml").write_text("width: 7  # as JSON has it\nlimit: 2.5\n")

    def options(*words: str) -> Base:
        return read(Base, words, prog="x", recipes=recipes)[0]

    assert options("--config", "wide.yaml") == Base(7, 2.5)
    assert options("--config", str(recipes / "wide.yaml"), "--width", "3") == Base(3, 2.5)
    (tmp_path / "wide.yaml").write_text("{width: 9}")
    assert options("--config", "wide.yaml").width == 9, "what stands here comes first"
    for content, message in {
        "width: [": "wide.yaml: not YAML",
        "- width": "wide.yaml: expected a YAML mapping, got list",
        "widths: 3": "unknown widths",
        "width: x": "wide.yaml: .*width",
    }.items():
        (tmp_path / "wide.yaml").write_text(content)
        with pytest.raises(ValueError, match=message):
            options("--config", "wide.yaml")
    for name, message in (("narrow.yaml", "none of those that come along: wide.yaml"), ("a/wide.yaml", "no such file")):
        with pytest.raises(FileNotFoundError, match=message):
            options("--config", name)
