"""The files of a user study: a key that says what letter is whose in every row, and answers that are counted by it."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mixsyn_fast.reading import read_text
from mixsyn_fast.writing import write_whole


def write_csv(path: Path, heading: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    """Write a table, whole or not at all; folders are made."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows(lines)
    write_whole(path, text.getvalue())
    print(f"written: {path}")


def read_key(path: Path) -> dict[str, dict[str, str]]:
    """Return row -> letter -> method of a key; ValueError or FileNotFoundError, naming the file, where it is none."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (expected the key of a study: --out names its folder)")
    lines = list(csv.reader(io.StringIO(read_text(path))))
    if not lines or lines[0][:2] != ["row", "name"]:
        raise ValueError(f"{path}: expected the key of a study, got {lines[0] if lines else 'an empty file'}")
    letters = lines[0][2:]
    return {line[0]: dict(zip(letters, line[2:], strict=True)) for line in lines[1:] if line}


def answered(path: Path) -> dict[str, str]:
    """Return row -> letter of filled-in answers, without empty rows; a spreadsheet's semicolons and tabs are read too.

    Raises:
        ValueError, FileNotFoundError: no such file, or a row that comes twice; the message names both.
    """
    if not path.is_file():
        raise FileNotFoundError(f"answers: {path}: no such file")
    text = read_text(path)
    mark = text[len("row") : len("row") + 1]
    found: dict[str, str] = {}
    for line in list(csv.reader(io.StringIO(text), delimiter=mark if mark in (";", "\t") else ","))[1:]:
        letter = line[1].strip().upper() if len(line) > 1 else ""
        if not letter:
            continue
        row = line[0].strip()
        if row in found:
            raise ValueError(f"answers: {path}: row {row}: expected one answer, got {found[row]} and {letter}")
        found[row] = letter
    return found


def count(files: Sequence[str], key: Mapping[str, Mapping[str, str]]) -> Counter[str]:
    """Count the votes of filled-in answers by a key: method -> votes; rows without an answer do not count.

    Raises:
        ValueError, FileNotFoundError: a file that is not there, comes twice or has no answer at all, a row that the key
            lacks or that comes twice, or a letter that its row lacks; the message names the file and the row.
    """
    votes: Counter[str] = Counter({method: 0 for row in key.values() for method in row.values()})
    seen: set[Path] = set()
    for file in files:
        if Path(file).resolve() in seen:
            raise ValueError(f"answers: expected every file once, got {file} twice")
        seen.add(Path(file).resolve())
        found = answered(Path(file))
        if not found:
            raise ValueError(f"answers: {file}: expected a letter in the second column of some row, got none")
        for row, letter in found.items():
            if row not in key or letter not in key[row]:
                known = "/".join(key.get(row, {})) or "no such row"
                raise ValueError(f"answers: {file}: row {row}: expected {known}, got {letter!r}")
            votes[key[row][letter]] += 1
    return votes


def table(votes: Mapping[str, int]) -> str:
    """Return votes and shares as text, most first."""
    total = max(1, sum(votes.values()))
    rows = sorted(votes.items(), key=lambda entry: -entry[1])
    return "\n".join(f"{name}: {count} votes ({count / total:.1%})" for name, count in rows)
