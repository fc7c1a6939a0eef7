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


def count(files: Sequence[str], key: Mapping[str, Mapping[str, str]]) -> Counter[str]:
    """Count the votes of filled-in answers by a key: method -> votes; rows without an answer do not count.

    Raises:
        ValueError, FileNotFoundError: a file that is not there, a row that the key lacks, or a letter that its row lacks;
            the message names the file and the row.
    """
    votes: Counter[str] = Counter({method: 0 for row in key.values() for method in row.values()})
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(f"answers: {file}: no such file")
        for line in list(csv.reader(io.StringIO(read_text(Path(file)))))[1:]:
            letter = line[1].strip().upper() if len(line) > 1 else ""
            if not letter:
                continue
            if line[0] not in key or letter not in key[line[0]]:
                known = "/".join(key.get(line[0], {})) or "no such row"
                raise ValueError(f"answers: {file}: row {line[0]}: expected {known}, got {letter!r}")
            votes[key[line[0]][letter]] += 1
    return votes


def table(votes: Mapping[str, int]) -> str:
    """Return votes and shares as text, most first."""
    total = max(1, sum(votes.values()))
    rows = sorted(votes.items(), key=lambda entry: -entry[1])
    return "\n".join(f"{name}: {count} votes ({count / total:.1%})" for name, count in rows)
