"""Files that are written whole or not at all, and what becomes of Python's values in JSON."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; a body that ends well moves it there, else nothing is left.

    Folders are made. The temporary name ends like `path`, for writers that choose a format by it. What was written is on the
    disk before it gets its name.

    Raises:
        OSError: the folder cannot be made or written to, or `path` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target}: expected a file to write, got a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)  # mkstemp's files are the owner's alone; ours are what a plain open() would make
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write text (UTF-8) or bytes with :func:`written_whole`; raises as it does."""
    with written_whole(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def jsonable(value: Any) -> Any:
    """Return a value as JSON types.

    Dataclasses become objects of all their fields; tuples, arrays and tensors lists, their scalars numbers; paths, dtypes
    and devices their names. Numbers that JSON does not have become "nan", "inf" and "-inf": float() reads them back.
    """
    if hasattr(value, "__dataclass_fields__"):
        return {name: jsonable(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return jsonable(value.tolist())
    if isinstance(value, torch.dtype | torch.device | os.PathLike):
        return str(value).removeprefix("torch.")
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def json_line(value: Any) -> str:
    """Return what :func:`jsonable` makes of a value as one line of JSON; TypeError for what JSON cannot hold."""
    return json.dumps(jsonable(value), allow_nan=False) + "\n"


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write what :func:`jsonable` makes of a value; raises as :func:`written_whole`, TypeError for what JSON cannot hold."""
    write_whole(path, json.dumps(jsonable(value), indent=1, allow_nan=False) + "\n")
