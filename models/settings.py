"""Settings as dataclasses, and the same settings as command-line options and as JSON.

A field is declared once::

    @dataclass(frozen=True)
    class Options:
        batch_size: int = 8  # images per step, over all processes

and is then the option ``--batch-size`` (its help is the comment, its default is shown), the key ``batch_size`` of a
JSON file, and the attribute. Types: bool, int, float, str, Literal, ``X | None``, unions, tuples of these, and
dataclasses, whose fields become ``--section.field``.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import io
import json
import math
import textwrap
import tokenize
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union

C = TypeVar("C")
_NONE = type(None)
_SCALARS = (bool, int, float, str, _NONE)


# --------------------------------------------------------------------------------------------------
# Types
# --------------------------------------------------------------------------------------------------


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Field name -> type of a dataclass, in the order of its fields; TypeError for a type that has no option."""
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
        raise TypeError(
            f"{where}: expected a type made of bool, int, float, str, None, Literal, tuple, union or dataclass, got {hint!r}"
        )


def _describe(hint: Any) -> str:
    """Name a type for help and messages: "int", "a|b", "int,int", "float|none"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "|".join(map(str, args))
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return f"{_describe(args[0])},..."
        return ",".join(map(_describe, args))
    if origin is not None:
        return "|".join(map(_describe, args))
    return "none" if hint is _NONE else hint.__name__


def _members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, str last, for it takes every text."""
    return tuple(sorted(typing.get_args(hint), key=lambda member: member is str))


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
    return value if type(value) is hint else _fail()


# --------------------------------------------------------------------------------------------------
# Help from comments
# --------------------------------------------------------------------------------------------------


@cache
def field_comments(kind: type) -> dict[str, str]:
    """Return field name -> the comment behind its declaration, else the comment lines directly above it.

    Looks at the class and what it inherits from; the declaration nearest to `kind` wins. A class whose source is not
    there (typed into an interpreter) has no comments.
    """
    result: dict[str, str] = {}
    for ancestor in reversed(kind.__mro__):
        if dataclasses.is_dataclass(ancestor):
            result |= _own_comments(ancestor)
    return result


def _own_comments(kind: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(kind))
        body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
    except (OSError, TypeError, SyntaxError):
        return {}
    comments: dict[int, str] = {}  # line -> text
    alone: set[int] = set()  # lines that hold nothing else
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("#").strip()
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    result = {}
    for node in body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        text = [comments[line] for line in lines if line in comments]
        if not text:
            line = node.lineno - 1
            while line in alone:
                text.insert(0, comments[line])
                line -= 1
        result[node.target.id] = " ".join(text)
    return result


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------


def _leaves(kind: type, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield (dotted name, type, comment) of every field that is no section."""
    comments = field_comments(kind)
    for name, hint in _hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from _leaves(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            yield prefix + name, hint, comments.get(name, "")


def _sections(kind: type, prefix: str = "") -> dict[str, str]:
    """Return dotted name -> comment of every field that is a section."""
    result: dict[str, str] = {}
    for name, hint in _hints(kind).items():
        if dataclasses.is_dataclass(hint):
            result[prefix + name] = field_comments(kind).get(name, "")
            result |= _sections(typing.cast(type, hint), f"{prefix}{name}.")
    return result


def _defaults(kind: type, prefix: str = "") -> dict[str, Any]:
    """Return dotted name -> default of the fields that have one."""
    result: dict[str, Any] = {}
    hints = _hints(kind)
    for field in dataclasses.fields(kind):
        if field.name not in hints:
            continue
        name = prefix + field.name
        value: Any = dataclasses.MISSING
        if field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if dataclasses.is_dataclass(hints[field.name]):
            result |= _defaults(hints[field.name], f"{name}.")
            if value is not dataclasses.MISSING:
                result |= _flat(value, f"{name}.")
        elif value is not dataclasses.MISSING:
            result[name] = value
    return result


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return dotted name -> value of every field of a config that is no section."""
    result: dict[str, Any] = {}
    for name in _hints(type(config)):
        value = getattr(config, name)
        result |= _flat(value, f"{prefix}{name}.") if dataclasses.is_dataclass(value) else {prefix + name: value}
    return result


def _text(value: Any) -> str:
    """Write a value as one would on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    return "none" if value is None else str(value)


def add_arguments(
    parser: argparse.ArgumentParser, kind: type, /, *, without: Collection[str] = (), **overridden: Any
) -> None:
    """Add an option for every field of the dataclass `kind`; abbreviated options are switched off.

    `model.label_nc` of a section becomes ``--model.label-nc``. Tuples are comma lists, bools ``--flag`` and
    ``--no-flag``, None is the word "none". A field without default is a required option.

    Args:
        parser: gets the options, in one group per section.
        kind: the dataclass.
        without: dotted names of fields that get no option and keep their default (what the data decides, say).
        overridden: other defaults, ``batch_size=4``; those of sections as ``**{"model.ngf": 32}`` or ``model=Config(...)``.

    Raises:
        TypeError: `kind` is no dataclass, a field's type has no option, or an overridden name is no field.
        ValueError: an overridden default is not of the field's type.
    """
    leaves = list(_leaves(kind))
    defaults = _defaults(kind)
    hints = {name: hint for name, hint, _ in leaves}
    for name, value in overridden.items():
        values = _flat(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
        for key, default in values.items():
            if key not in hints:
                raise TypeError(f"{key}: no field of {kind.__name__}; expected one of {', '.join(hints)}")
            defaults[key] = _checked(default, hints[key], key)
    unknown = [name for name in without if name not in hints]
    if unknown:
        raise TypeError(f"{unknown[0]}: no field of {kind.__name__}; expected one of {', '.join(hints)}")
    parser.set_defaults(**{name: defaults[name] for name in without})
    leaves = [leaf for leaf in leaves if leaf[0] not in without]
    parser.allow_abbrev = False
    groups: dict[str, Any] = {"": parser}
    for section, comment in _sections(kind).items():
        groups[section] = parser.add_argument_group(section, comment or None)
    for name, hint, comment in leaves:
        section = name.rpartition(".")[0]
        has_default = name in defaults
        shown = f"(default: {_text(defaults[name]) or 'empty'})" if has_default else "(required)"
        options: dict[str, Any] = {"dest": name, "default": defaults.get(name), "required": not has_default}
        if hint is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": _reader(hint), "metavar": _describe(hint).upper() if hint in _SCALARS else _describe(hint)}
        action = groups[section].add_argument("--" + name.replace("_", "-"), **options)
        action.help = f"{comment} {shown}".strip().replace("%", "%%")  # set here: Python 3.11's bool action adds to it


def _reader(hint: Any) -> Any:
    def read(text: str) -> Any:
        try:
            return _parse(text, hint)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {_describe(hint)}, got {text!r}") from None

    return read


def _checked(value: Any, hint: Any, key: str) -> Any:
    try:
        return _convert(value, hint)
    except ValueError:
        raise ValueError(f"{key}: expected {_describe(hint)}, got {value!r}") from None


def from_arguments(namespace: argparse.Namespace, kind: type[C]) -> C:
    """Return the config that parsed options describe.

    Raises:
        ValueError: what the checks of the dataclass (``__post_init__``) find; a section's name stands in front.
        TypeError: :func:`add_arguments` was not called with `kind` for the parser.
    """
    given = vars(namespace)
    tree: dict[str, Any] = {}
    for name, _, _ in _leaves(kind):
        if name not in given:
            raise TypeError(f"{name}: not among the parsed options; call add_arguments(parser, {kind.__name__}) first")
        *sections, last = name.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = given[name]
    return from_dict(kind, tree)


# --------------------------------------------------------------------------------------------------
# JSON
# --------------------------------------------------------------------------------------------------


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as JSON-able dicts, lists and scalars (tuples become lists)."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return to_dict(value)
        return [plain(part) for part in value] if isinstance(value, (tuple, list)) else value

    return {name: plain(getattr(config, name)) for name in _hints(type(config))}


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def from_dict(kind: type[C], values: Mapping[str, Any], *, _prefix: str = "") -> C:
    """Return the config that :func:`to_dict` wrote down.

    A key that is missing takes the field's default, so that a run outlives the options that are added after it.

    Raises:
        ValueError: a key that is unknown, or missing without a default; a value of a wrong type, or what ``__post_init__``
            finds; the message names the dotted key.
    """
    hints = _hints(kind)
    where = _prefix.rstrip(".") or kind.__name__
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected the fields of {kind.__name__}, got {values!r}")
    unknown = [f"{_prefix}{name}" for name in values if name not in hints]
    needed = [field.name for field in dataclasses.fields(kind) if field.init and not _has_default(field)]  # type: ignore[arg-type]
    missing = [f"{_prefix}{name}" for name in needed if name not in values]
    if unknown or missing:
        problems = [f"{title} {', '.join(names)}" for title, names in (("unknown", unknown), ("missing", missing)) if names]
        raise ValueError(f"{where}: {'; '.join(problems)}")
    fields: dict[str, Any] = {}
    for name, hint in hints.items():
        if name not in values:
            continue
        key = _prefix + name
        if dataclasses.is_dataclass(hint):
            fields[name] = from_dict(typing.cast(type, hint), values[name], _prefix=f"{key}.")
        else:
            fields[name] = _checked(values[name], hint, key)
    try:
        return kind(**fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if _prefix else str(error)) from error


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
