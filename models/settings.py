"""Configs and options as dataclasses: read from the command line, read from JSON, written to JSON.

A config describes a network or a model, and is stored with its weights; options are what a command takes. Both are declared
field by field::

    @dataclass(frozen=True)
    class Options(Checked):
        batch_size: int = 8  # images per step, over all processes

which is the option ``--batch-size`` (its help is the comment, or a docstring below), the key ``batch_size`` of a JSON file,
and the attribute. Types: bool, int, float, str, Path, Literal, ``X | None``, unions, tuples of these, and dataclasses, whose
fields become ``--section.field``. Tuples are comma lists, bools ``--flag`` and ``--no-flag`` (of a section
``--no-section.flag`` or ``--section.no-flag``), None is the word "none". A field without default is a required option.

The command line is read by tyro. Ours are the texts of values (comma lists, "none", finite numbers), JSON, and `--config`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union

from mixsyn_fast.reading import read_text

C = TypeVar("C")
_NONE = type(None)
_SCALARS = (bool, int, float, str, Path, _NONE)


# --------------------------------------------------------------------------------------------------
# Types
# --------------------------------------------------------------------------------------------------


def _hints(kind: Any) -> dict[str, Any]:
    """Field name -> type of a dataclass, in the order of its fields; TypeError for a type that has no option."""
    known: dict[str, Any] = _read_hints(kind)
    return known


@cache
def _read_hints(kind: Any) -> dict[str, Any]:
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise TypeError(f"expected a dataclass, got {kind!r}")
    hints = typing.get_type_hints(kind)
    result = {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}
    for name, hint in result.items():
        if not dataclasses.is_dataclass(hint):
            _check_type(hint, f"{kind.__name__}.{name}")
    return result


def _check_type(hint: Any, where: str) -> None:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        known = all(isinstance(choice, (int, str)) for choice in args)
    elif origin in (Union, types.UnionType, tuple):
        for arg in args:
            if arg is not Ellipsis:
                _check_type(arg, where)
        known = bool(args)
    else:
        known = hint in _SCALARS
    if not known:
        known_types = "bool, int, float, str, Path, None, Literal, tuple, union or dataclass"
        raise TypeError(f"{where}: expected a type made of {known_types}, got {hint!r}")


def _describe(hint: Any) -> str:
    """Name a type for help and messages: "int", "a|b", "int,int", "float|none", "file"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "|".join(map(str, args))
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return f"{_describe(args[0])},..."
        return ",".join(map(_describe, args))
    if origin is not None:
        return "|".join(map(_describe, args))
    return {_NONE: "none", Path: "file"}.get(hint) or hint.__name__


def _members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, str and Path last, for they take every text."""
    return tuple(sorted(typing.get_args(hint), key=lambda member: member in (str, Path)))


def _element_types(hint: Any, count: int) -> list[Any]:
    """One type per element of a tuple of `count` elements; ValueError for a wrong number of elements."""
    args = typing.get_args(hint)
    if len(args) == 2 and args[1] is Ellipsis:
        return [args[0]] * count
    if len(args) != count:
        raise ValueError
    return list(args)


def _parse(text: str, hint: Any) -> Any:
    """Return the value that `text` stands for on the command line; ValueError without a message when it is none."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return {str(choice): choice for choice in args}[text] if text in map(str, args) else _fail()
    if origin is tuple:
        parts = [part.strip() for part in text.split(",")] if text else []
        return tuple(_parse(part, kind) for part, kind in zip(parts, _element_types(hint, len(parts)), strict=True))
    if origin is not None:
        for member in _members(hint):
            try:
                return _parse(text, member)
            except ValueError:
                pass
        return _fail()
    if hint is _NONE:
        return None if text.lower() == "none" else _fail()
    if hint is bool:
        return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else _fail()
    value = hint(text)
    return value if not isinstance(value, float) or math.isfinite(value) else _fail()


def _fail() -> Any:
    raise ValueError


def _convert(value: Any, hint: Any) -> Any:
    """Return a JSON value, or a value of Python, as the type says; ValueError without a message when it does not fit."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        # True == 1 == 1.0 in Python, so the type counts too
        return value if any(value == choice and type(value) is type(choice) for choice in args) else _fail()
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError
        return tuple(_convert(part, kind) for part, kind in zip(value, _element_types(hint, len(value)), strict=True))
    if origin is not None:
        members = sorted(_members(hint), key=lambda member: member is not type(value))  # 1 in int | float stays an int
        for member in members:
            try:
                return _convert(value, member)
            except ValueError:
                pass
        return _fail()
    if hint is float and type(value) in (int, float):
        return float(value) if math.isfinite(value) else _fail()
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    return value if type(value) is hint else _fail()


def _text(value: Any) -> str:
    """Write a value as one would on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    return "none" if value is None else str(value)


def _checked(value: Any, hint: Any, key: str) -> Any:
    try:
        return _convert(value, hint)
    except ValueError:
        raise ValueError(f"{key}: expected {_describe(hint)}, got {value!r}") from None


# --------------------------------------------------------------------------------------------------
# Declaring options
# --------------------------------------------------------------------------------------------------


class Checked:
    """Base of options put together by inheritance: every ``__post_init__`` begins with ``super().__post_init__()``."""

    def __post_init__(self) -> None:
        """Check nothing: the end of the chain."""


def at_least(options: Any, **least: float) -> None:
    """ValueError, naming the field, for a number below its bound; None passes."""
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and value < bound:
            raise ValueError(f"{name}: expected at least {bound}, got {value}")


def one_of(options: Any, **choices: Collection[str]) -> None:
    """ValueError, naming the field, for a text that is none of its choices; None passes."""
    for name, known in choices.items():
        value = getattr(options, name)
        if value is not None and value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")


_HOW = "how"  # key of a field's metadata


def repeated() -> Any:
    """Declare a tuple of texts whose option is given once per element; empty by default."""
    return dataclasses.field(default=(), metadata={_HOW: "repeated"})


def positional(default: Any = dataclasses.MISSING) -> Any:
    """Declare a field that is a word without an option's name; a tuple takes all words that are left."""
    return dataclasses.field(default=default, metadata={_HOW: "positional"})


def together(name: str, **sections: type) -> type:
    """Return a dataclass with a section per argument, whose options carry no prefix."""
    fields = [
        (key, kind, dataclasses.field(default_factory=kind, metadata={_HOW: "flat"})) for key, kind in sections.items()
    ]
    return dataclasses.make_dataclass(name, fields, frozen=True)


def _how(kind: Any) -> dict[str, str]:
    """Field name -> how it is given, of those that are not plain options."""
    return {field.name: field.metadata[_HOW] for field in dataclasses.fields(kind) if _HOW in field.metadata}


def spelled(message: str, kind: type) -> str:
    """Write the fields of an error message as options.

    The one at its beginning, "batch_size: ..." as "--batch-size: ...", and advice: "drop_last=False" as "--no-drop-last".
    """
    name, found, rest = _leading(message, kind)
    if name:
        message = f"{'' if found == 'positional' else '--'}{name.replace('_', '-')}: {rest}"
    for flag in _flags(kind):
        option = flag.replace("_", "-")
        message = re.sub(rf"\b{flag}=True\b", f"--{option}", message)
        message = re.sub(rf"\b{flag}=False\b", f"--no-{option}", message)
    return message


def _flags(kind: Any) -> Iterator[str]:
    """Names of the fields that are options --flag and --no-flag, without a section's prefix."""
    how = _how(kind)
    for name, hint in _hints(kind).items():
        if how.get(name) == "flat":
            yield from _flags(hint)
        elif hint is bool:
            yield name


def _leading(message: str, kind: Any) -> tuple[str, str, str]:
    """Split a message into dotted field name, how it is given, and the rest; no name where it begins with no field."""
    how = _how(kind)
    for name, hint in _hints(kind).items():
        if how.get(name) == "flat":
            found = _leading(message, hint)
            if found[0]:
                return found
        elif message.startswith(f"{name}: "):
            rest = message[len(name) + 2 :]
            inner, _, last = _leading(rest, hint) if dataclasses.is_dataclass(hint) else ("", "", rest)
            return f"{name}.{inner}" if inner else name, how.get(name, ""), last
    return "", "", message


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------


_CONFIG = "JSON or YAML file of options: its values instead of the defaults; the command line wins"
_PRINT = "print all options as JSON, as --config reads them, and leave"


class _Refused(NamedTuple):
    """Stands for a value whose text does not fit, until its option's name is known."""

    text: str
    hint: Any


def read(
    kind: type[C],
    words: Sequence[str],
    *,
    prog: str,
    description: str | None = None,
    fixed: Collection[str] = (),
    of_file: Callable[[dict[str, Any]], Mapping[str, Any]] = dict,
    recipes: Path | None = None,
) -> tuple[C, bool]:
    """Read a command's options; every command has `--config FILE` and `--print-config` besides.

    Args:
        kind: dataclass of the options.
        words: of the command line, without the command.
        prog: the command, for help and errors.
        description: text above the options in the help.
        fixed: dotted names of fields that are no options: they keep their defaults.
        of_file: takes what the JSON file of `--config` holds, returns the values of `kind` (as :func:`to_dict` writes them)
            that become the defaults; the command line wins.
        recipes: folder of files that come with the package, where a `--config NAME` is looked for that is nowhere else.

    Returns:
        The options, and whether `--print-config` was given.

    Raises:
        ValueError: a value of a wrong type or one that the checks of the dataclass refuse, in words or file; the message
            names the option.
        FileNotFoundError: no such file.
        ImportError: tyro is missing, or PyYAML for a file that ends in .yaml.
        SystemExit: help was asked for (0); an unknown or missing option, or one without its value, said on stderr (2).
    """
    tyro = _tyro()
    given: dict[str, Any] = {}
    file = _config_file(words)
    if file is not None:
        values = read_values(_recipe(file, recipes))
        try:
            given = _given(kind, of_file(values))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    command = dataclasses.make_dataclass(
        "Command",
        [
            ("options", Annotated[kind, tyro.conf.arg(name="")]),
            ("config", Annotated[Path | None, tyro.conf.arg(help=_CONFIG)], None),
            ("print_config", Annotated[bool, tyro.conf.arg(help=_PRINT), tyro.conf.FlagCreatePairsOff], False),
        ],
    )
    with _wide("-h" in words or "--help" in words):
        tree: Any = tyro.cli(
            command,
            args=[re.sub(r"^--no-([^=]+\.)([^.=]+)$", r"--\1no-\2", word) for word in words],  # as tyro spells them
            prog=prog,
            description=description,
            default=command(_unchecked(kind, given, tyro.MISSING_NONPROP)),
            registry=_registry(tyro, _places(kind, fixed)),
        )
    for name, refused in _refusals(tree["options"], kind):
        raise ValueError(f"--{name.replace('_', '-')}: expected {_describe(refused.hint)}, got {refused.text!r}")
    try:
        return _built(kind, tree["options"]), tree["print_config"]
    except ValueError as error:
        raise ValueError(spelled(str(error), kind)) from error


def _tyro() -> Any:
    try:
        tyro: Any = importlib.import_module("tyro")
    except ImportError as error:
        raise ImportError(f"options on the command line need tyro: pip install 'mixsyn_fast[models]' ({error})") from None
    tyro._experimental_options.update(utf8_boxes=False, ansi_codes=False)
    return tyro


@contextlib.contextmanager
def _wide(as_it_is: bool) -> Iterator[None]:
    """Let tyro write each message of an error on one line, however wide the terminal: file names stay whole."""
    before = os.environ.get("COLUMNS")
    if not as_it_is:
        os.environ["COLUMNS"] = "1000"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("COLUMNS", None)
        else:
            os.environ["COLUMNS"] = before


def _config_file(words: Sequence[str]) -> str | None:
    """Return the last FILE of `--config FILE` or `--config=FILE`."""
    files = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--config"]
    files += [word.partition("=")[2] for word in words if word.startswith("--config=")]
    return files[-1] if files else None


def _unchecked(kind: Any, given: Mapping[str, Any], missing: Any) -> Any:
    """Return an object of `kind` for tyro's defaults: values of a file, then the fields' own; it is checked nowhere."""
    made, hints = object.__new__(kind), _hints(kind)
    for field in (field for field in dataclasses.fields(kind) if field.init):
        value = given.get(field.name, _default(field, missing))
        if isinstance(value, dict):
            value = _unchecked(hints[field.name], _values(_default(field, None)) | value, missing)
        object.__setattr__(made, field.name, value)
    return made


def _places(kind: type, dotted: Collection[str]) -> set[tuple[type, str]]:
    """Return (section's class, field) of dotted names; TypeError for one that is no field."""
    found = set()
    for name in dotted:
        place: Any = kind
        *sections, last = name.split(".")
        for flat in (key for key, how in _how(kind).items() if how == "flat"):
            if (sections or [last])[0] in _hints(_hints(kind)[flat]):
                place = _hints(kind)[flat]
        for section in sections:
            place = _hints(place).get(section, _NONE)
        if not dataclasses.is_dataclass(place) or last not in _hints(typing.cast(type, place)):
            raise TypeError(f"{name}: no field of {kind.__name__}")
        found.add((typing.cast(type, place), last))
    return found


def _registry(tyro: Any, fixed: set[tuple[type, str]]) -> Any:
    """Return tyro's rules with ours: texts of values as here, sections as dicts, and how fields are given."""
    conf, constructors = tyro.conf, tyro.constructors
    registry = constructors.ConstructorRegistry()
    inside: list[Any] = []

    def leaf(info: Any) -> Any:
        hint = info.type
        try:
            _check_type(hint, "")
        except TypeError:
            return None
        many = typing.get_origin(hint) is tuple and info.markers & {conf.UseAppendAction, conf.Positional}
        if hint is bool or many:
            return None  # flags, and words of their own, as tyro reads them

        def value(texts: list[str]) -> Any:
            try:
                return _parse(texts[0], hint)
            except ValueError:
                return _Refused(texts[0], hint)

        def fits(instance: Any) -> bool:
            try:
                _convert(instance, hint)
            except ValueError:
                return False
            return True

        name = _describe(hint)
        return constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=name.upper() if hint in _SCALARS else name,
            instance_from_str=value,
            is_instance=fits,
            str_from_instance=lambda instance: [_text(instance) or "empty"],
        )

    def section(info: Any) -> Any:
        if info.type in inside or not dataclasses.is_dataclass(info.type):
            return None
        inside.append(info.type)
        try:
            spec = constructors.ConstructorRegistry.get_struct_spec(info)
        finally:
            inside.pop()
        how = _how(info.type)
        marks = {"repeated": conf.UseAppendAction, "positional": conf.Positional, "flat": conf.arg(name="")}
        fields = []
        for field in spec.fields:
            if field.name not in _hints(info.type):
                continue  # no argument of the constructor
            if field.name in how:
                field = dataclasses.replace(field, type=Annotated[field.type, marks[how[field.name]]])
            if how.get(field.name) == "positional":  # its name is not on the command line, so it is in the help
                field = dataclasses.replace(field, type=Annotated[field.type, conf.arg(metavar=field.name.upper())])
            if (info.type, field.name) in fixed:
                field = dataclasses.replace(field, type=Annotated[field.type, conf.Fixed, conf.Suppress])
            fields.append(field)
        return constructors.StructConstructorSpec(instantiate=dict, fields=tuple(fields))

    registry.primitive_rule(leaf)
    registry.struct_rule(section)
    return registry


def _refusals(tree: Mapping[str, Any], kind: type, prefix: str = "") -> Iterator[tuple[str, _Refused]]:
    how = _how(kind)
    for name, value in tree.items():
        if isinstance(value, _Refused):
            yield prefix + name, value
        elif isinstance(value, dict):
            yield from _refusals(value, _hints(kind)[name], prefix if how.get(name) == "flat" else f"{prefix}{name}.")


# --------------------------------------------------------------------------------------------------
# JSON
# --------------------------------------------------------------------------------------------------


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config, or options, as JSON-able dicts, lists and scalars (tuples become lists, paths texts)."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return to_dict(value)
        if isinstance(value, (tuple, list)):
            return [plain(part) for part in value]
        return str(value) if isinstance(value, Path) else value

    return {name: plain(getattr(config, name)) for name in _hints(type(config))}


def from_dict(kind: type[C], values: Mapping[str, Any]) -> C:
    """Return the config, or the options, that :func:`to_dict` wrote down.

    A key that is missing takes the field's default, within a section that of the section's own default, so that a run
    outlives the options that are added after it.

    Raises:
        ValueError: a key that is unknown, or missing without a default; a value of a wrong type, or what ``__post_init__``
            finds; the message names the dotted key.
    """
    return _built(kind, _given(kind, values))


def _given(kind: type, values: Any, prefix: str = "") -> dict[str, Any]:
    """Return JSON values as the types of the fields, sections as dicts; nothing needs to be there."""
    hints, how = _hints(kind), _how(kind)
    where = prefix.rstrip(".") or kind.__name__
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected the fields of {kind.__name__}, got {values!r}")
    unknown = [f"{prefix}{name}" for name in values if name not in hints]
    if unknown:
        raise ValueError(f"{where}: unknown {', '.join(unknown)}")
    found: dict[str, Any] = {}
    for name in (name for name in hints if name in values):
        hint, key = hints[name], prefix + name
        if dataclasses.is_dataclass(hint):
            found[name] = _given(typing.cast(type, hint), values[name], prefix if how.get(name) == "flat" else f"{key}.")
        else:
            found[name] = _checked(values[name], hint, key)
    return found


def _built(kind: type[C], given: Mapping[str, Any], prefix: str = "") -> C:
    """Return the dataclass of values that have its types; sections are dicts."""
    hints, how = _hints(kind), _how(kind)
    where = prefix.rstrip(".") or kind.__name__
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    nothing = dataclasses.MISSING
    missing = [prefix + name for name, field in fields.items() if name not in given and _default(field, nothing) is nothing]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}")
    values: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, dict):
            below = prefix if how.get(name) == "flat" else f"{prefix}{name}."
            value = _built(hints[name], _values(_default(fields[name], None)) | value, below)
        values[name] = value
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if prefix else str(error)) from error


def _default(field: dataclasses.Field[Any], missing: Any) -> Any:
    """Return a field's default, `missing` where it has none."""
    if field.default is not dataclasses.MISSING:
        return field.default
    return missing if field.default_factory is dataclasses.MISSING else field.default_factory()


def _values(config: Any) -> dict[str, Any]:
    """Return the fields of a section's default, none for None: what a file does not say of the section."""
    return {} if config is None else {name: getattr(config, name) for name in _hints(type(config))}


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object; ValueError or FileNotFoundError names the file."""
    try:
        values = json.loads(read_text(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file (expected a JSON file of options)") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def read_values(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file of options: YAML where its name ends in .yaml or .yml, else JSON.

    Raises:
        ValueError, FileNotFoundError: as :func:`read_json`; the message names the file.
        ImportError: YAML, and PyYAML is missing.
    """
    if Path(path).suffix.lower() not in (".yaml", ".yml"):
        return read_json(path)
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError as error:
        raise ImportError(f"{path}: YAML needs PyYAML: pip install 'mixsyn_fast[models]' ({error})") from None
    try:
        values = yaml.safe_load(read_text(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file (expected a YAML file of options)") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a YAML mapping, got {type(values).__name__}")
    return values


def _recipe(file: str, recipes: Path | None) -> Path:
    """Return a file, or what comes with the package under its name."""
    path = Path(file)
    if recipes is None or path.exists() or path.name != file:
        return path
    known = sorted(each.name for each in recipes.iterdir() if each.is_file()) if recipes.is_dir() else []
    if file in known:
        return recipes / file
    if known:
        raise FileNotFoundError(f"config: {file}: no such file, and none of those that come along: {', '.join(known)}")
    return path


def dumps(config: Any) -> str:
    """Return a config (a dataclass or the dict of one) as indented JSON."""
    return json.dumps(config if isinstance(config, Mapping) else to_dict(config), indent=1, allow_nan=False)


def differences(a: Any, b: Any) -> list[str]:
    """Return one line "key: value in a -> value in b" for every field in which two configs differ.

    Args:
        a: a config, or the dict of one.
        b: likewise, not necessarily of the same class; a key that one of them lacks is shown as "absent".
    """

    def flat(values: Any, prefix: str = "") -> dict[str, str]:
        result: dict[str, str] = {}
        for name, value in values.items():
            result |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: json.dumps(value)}
        return result

    before, after = (flat(x if isinstance(x, Mapping) else to_dict(x)) for x in (a, b))
    return [
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    ]
