"""Objects kept under the content of what they were made from, in one folder for all processes and copies of the sources."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]


def build(
    name: str,
    units: Mapping[tuple[Path, str], Sequence[str]],
    link: Sequence[str],
    folders: Sequence[Path],
    made: Sequence[Path] = (),
) -> Path:
    """Compile what has changed since any earlier build, and link it.

    Objects are kept under the content of their source, of the headers it includes, and of the command, in
    MIXSYN_FAST_CACHE, or else in a temporary folder. One process builds, others wait.

    Args:
        name: of the folder of objects.
        units: the command that compiles a source, without source and output; the key is the source and what else
            decides of its object: versions of the compiler and of torch.
        link: the command that links, without output, with ``{}`` in place of the objects.
        folders: where the commands look for headers of the repository.
        made: objects that are there already and linked as well.

    Returns:
        What was linked.

    Raises:
        RuntimeError: the compiler's message.
    """
    root = Path(os.environ.get("MIXSYN_FAST_CACHE") or tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    objects = {}
    for (source, versions), command in units.items():
        parts = [path.read_bytes() for path in [source, *_included(source, folders)]]
        objects[source, versions] = root / f"{_key(versions, repr(command), source.name, *parts)}.o"
    target = root / _key(repr(link), *(path.name for path in objects.values()), *(path.read_bytes() for path in made))
    if target.is_file():
        return target
    with FileLock(root / "lock"):
        missing = [(units[unit], unit[0], path) for unit, path in objects.items() if not path.is_file()]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda job: _run([*job[0], "-c", str(job[1].relative_to(ROOT))], job[2]), missing))
        middle = link.index("{}")
        _run([*link[:middle], *map(str, [*objects.values(), *made]), *link[middle + 1 :]], target)
    return target


def _key(*parts: str | bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return whole.hexdigest()[:24]


def _included(source: Path, folders: Sequence[Path]) -> list[Path]:
    """Headers of this repository that a source includes, directly or not, in a fixed order.

    A header that a macro names may be any one below the folder of the file.
    """
    found: list[Path] = []
    pending = [source]
    while pending:
        path = pending.pop()
        text = path.read_text()
        headers = [*path.parent.rglob("*.h")] if re.search(r"^\s*#\s*include\s+[A-Z]", text, re.MULTILINE) else []
        for name in re.findall(r'^\s*#\s*include\s*[<"]([^">]+)[">]', text, re.MULTILINE):
            headers += [place for folder in (path.parent, *folders) if (place := folder / name).is_file()][:1]
        for header in (place.resolve() for place in headers):
            if header not in found:
                found.append(header)
                pending.append(header)
    return sorted(found)


def _run(command: Sequence[str], target: Path) -> None:
    """Run a compiler; its output appears whole or not at all."""
    part = target.with_suffix(f".{os.getpid()}{target.suffix}")
    done = subprocess.run([*command, "-o", str(part)], capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    os.replace(part, target)
