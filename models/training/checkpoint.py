"""Checkpoints that survive a kill at any moment, a full disk and a flipped bit.

A checkpoint is a folder ``step_00001234`` with one ``<group>.safetensors`` per group of tensors, ``state.json`` and
``manifest.json``, which holds size and SHA-256 of the others and of itself. It is written under a temporary name, every
file and the folder are fsynced, and then the folder is renamed: it is there whole or not at all. Loading verifies every
byte first and falls back to the checkpoint before.

One writer per folder at a time (a lock of the operating system, which vanishes with its holder); any number of readers.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from .packing import pack, pack_optimizer, rng_state, set_rng_state, unpack, unpack_optimizer

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "bytes_of",
    "checkpoint_at",
    "newest_valid",
    "open_checkpoint",
    "pack",
    "pack_optimizer",
    "preflight",
    "rng_state",
    "save_checkpoint",
    "set_rng_state",
    "steps",
    "unpack",
    "unpack_optimizer",
]

FORMAT = 1
_STATE, _MANIFEST, _LOCK = "state.json", "manifest.json", ".lock"
_TEMPORARY = ".tmp_"  # a save or a removal under way, or what a kill left of it
_REPLACED = ".replaced_"  # + name: a checkpoint whose successor of the same step is about to be renamed into place
_STEP = re.compile(r"step_(\d{8,})")
_GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_LOCK_SECONDS = 60.0
_SPARE_BYTES = 1 << 20  # for the JSON files and the file system's own needs


class CheckpointError(OSError):
    """A checkpoint could not be written or read; the message names folder or file, and the reason."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every byte has been verified."""

    path: Path  # its folder
    step: int  # steps done when it was saved
    state: dict[str, Any]  # the JSON state
    groups: tuple[str, ...]  # names of its groups of tensors
    best: bool  # it was saved as the best one so far

    def tensors(self, group: str, device: str | torch.device = "cpu") -> dict[str, Tensor]:
        """Read one group: name -> tensor.

        Raises:
            KeyError: there is no such group.
            CheckpointError: the file can no longer be read (the training has removed it since, say).
        """
        if group not in self.groups:
            raise KeyError(f"{self.path}: no group {group!r}; expected one of {', '.join(self.groups)}")
        path = self.path / f"{group}.safetensors"
        try:
            return _safetensors().torch.load_file(path, device=str(device))
        except Exception as error:
            raise CheckpointError(f"{path}: {error}") from error


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _safetensors() -> ModuleType:
    """The package `safetensors`, with its part for torch imported."""
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError("checkpoints need safetensors: pip install 'mixsyn_fast[models]'") from error
    return safetensors


# --------------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------------


def bytes_of(tensors: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Return the bytes that a checkpoint of these groups of tensors takes on disk, nearly."""
    return _SPARE_BYTES + sum(t.numel() * t.element_size() + 256 for group in tensors.values() for t in group.values())


def preflight(folder: str | os.PathLike[str], bytes_needed: int) -> None:
    """Find out before a training starts whether its checkpoints can be written to `folder`, which is made if need be.

    Args:
        folder: where the checkpoints will lie.
        bytes_needed: bytes of all the checkpoints that lie there at once (the kept ones and the one being written).

    Raises:
        ValueError: the folder cannot be made or written to, or has less free space than that.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _writing(folder), tempfile.NamedTemporaryFile(dir=folder, prefix=_TEMPORARY) as probe:
            probe.write(b"x")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise ValueError(f"{folder}: checkpoints cannot be written there: {error.strerror or error}") from error
    _check_space(folder, bytes_needed)


def bytes_there(folder: str | os.PathLike[str]) -> int:
    """Return the bytes of all checkpoints in a folder: room that a run which goes on there need not find anew."""
    paths = _listed(Path(folder)).values()
    return sum(file.stat().st_size for path in paths for file in path.iterdir() if file.is_file())


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(f"{folder}: not enough space: {needed / 2**20:.1f} MiB needed, {free / 2**20:.1f} MiB free")


def save_checkpoint(
    folder: str | os.PathLike[str],
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    keep_last: int = 3,
    best: bool = False,
) -> Path:
    """Write the checkpoint of `step` and return its folder, when it is safe on disk; then remove what is not kept.

    Kept are the last `keep_last` and the latest that was saved as `best`. Checkpoints of later steps go too: after a
    resume from an earlier one they belong to a past that did not happen.

    Args:
        folder: holds the checkpoints; made if need be.
        step: steps done, >= 0.
        tensors: group -> name -> tensor, on any device and in any layout; one that occurs twice is written twice.
        state: anything JSON can hold.
        keep_last: number of checkpoints to keep, >= 1.
        best: remember this one as the best so far.

    Raises:
        ValueError: an argument is not what it should be; nothing was written.
        CheckpointError: the disk is full, cannot be written to, or another process saves there. What was written of this
            checkpoint has been removed again, and those before are as they were.
    """
    if step < 0:
        raise ValueError(f"step: expected 0 or more, got {step!r}")
    if keep_last < 1:
        raise ValueError(f"keep_last: expected at least 1, got {keep_last!r}")
    for group, entries in tensors.items():
        if not _GROUP.fullmatch(group):
            raise ValueError(f"tensors: expected a group name of letters, digits, '_', '.', '-', got {group!r}")
        for name, value in entries.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"tensors[{group!r}][{name!r}]: expected a tensor, got {type(value).__name__}")
    try:
        text = json.dumps(state)
    except (TypeError, ValueError) as error:
        raise ValueError(f"state: expected what JSON can hold: {error}") from error
    library = _safetensors()

    folder = Path(folder)
    target = folder / _name(step)
    private: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _writing(folder):
            _remove_leftovers(folder)
            _check_space(folder, bytes_of(tensors))
            private = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder))
            private.chmod(0o777 & ~_umask())  # mkdtemp makes it for this user alone
            for group, entries in tensors.items():
                library.torch.save_file(_plain(entries), private / f"{group}.safetensors")
            (private / _STATE).write_text(text, encoding="utf-8")
            files = {path.name: _measure(path) for path in sorted(private.iterdir())}
            (private / _MANIFEST).write_bytes(_manifest({"format": FORMAT, "step": step, "best": best, "files": files}))
            for path in (*private.iterdir(), private):
                _fsync(path)
            replaced = folder / f"{_REPLACED}{target.name}"
            if target.exists():
                os.replace(target, replaced)
            os.replace(private, target)
            private = None
            _fsync(folder)
            _discard(replaced)
            _prune(folder, step, keep_last)
    except BaseException as error:
        if private is not None:
            shutil.rmtree(private, ignore_errors=True)
        if isinstance(error, Timeout):
            reason = f"another process has been saving there for {_LOCK_SECONDS:.0f} s"
        elif isinstance(error, (OSError, ValueError, library.SafetensorError)):
            reason = str(error)
        else:
            raise
        raise CheckpointError(f"{folder}: step {step} was not saved; those before it are kept: {reason}") from error
    return target


def _plain(entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, no two of which share memory."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in entries.items():
        value = value.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        if storage in seen:
            value = value.clone()
        seen.add(storage)
        result[name] = value
    return result


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _measure(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _manifest(content: Mapping[str, Any]) -> bytes:
    """Serialise a manifest with its own SHA-256; equal contents give equal bytes."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, sort_keys=True, indent=1).encode()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # file systems without fsync for folders say so with EINVAL
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)


@contextmanager
def _writing(folder: Path, timeout: float | None = None) -> Iterator[None]:
    """Hold the folder's lock; filelock.Timeout when another process keeps it for longer than `timeout` seconds."""
    lock = FileLock(folder / _LOCK, timeout=_LOCK_SECONDS if timeout is None else timeout)
    try:
        lock.acquire()
    except NotImplementedError:
        warnings.warn(
            f"{folder}: a file system without locks: see to it that one process at a time saves there", stacklevel=4
        )
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _discard(path: Path) -> None:
    """Remove a folder, if it is there, so that a kill in between leaves no half of it under its name."""
    try:
        if not path.name.startswith(_TEMPORARY) and path.exists():
            doomed = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=path.parent))
            path = path.replace(doomed)  # an empty folder may be replaced
        shutil.rmtree(path, ignore_errors=True)
    except OSError as error:
        warnings.warn(f"{path}: could not be removed: {error}", stacklevel=4)


def _remove_leftovers(folder: Path) -> None:
    """Clear up after saves that were killed. The caller holds the lock."""
    for path in list(folder.iterdir()):
        if path.name.startswith(_REPLACED):
            target = folder / path.name.removeprefix(_REPLACED)
            if target.exists():
                _discard(path)
            else:  # killed between the two renames: the old one is all there is
                os.replace(path, target)
        elif path.name.startswith(_TEMPORARY):
            if path.is_dir():
                _discard(path)
            else:
                path.unlink(missing_ok=True)


def _prune(folder: Path, step: int, keep_last: int) -> None:
    """Remove all but the last `keep_last` checkpoints up to `step` and the latest best one."""
    present = _listed(folder)
    past = {s: path for s, path in present.items() if s <= step}
    keep = set(sorted(past)[-keep_last:])
    keep |= set([s for s in sorted(past) if _is_best(past[s])][-1:])
    for s, path in present.items():
        if s not in keep:
            _discard(path)


def _is_best(path: Path) -> bool:
    try:
        return bool(_read_manifest(path)["best"])
    except CheckpointError:
        return False


# --------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------


def _listed(folder: Path) -> dict[int, Path]:
    """Step -> folder of every checkpoint, verified or not."""
    if not folder.is_dir():
        return {}
    matches = ((path, _STEP.fullmatch(path.name)) for path in folder.iterdir())
    return {int(match[1]): path for path, match in matches if match and path.is_dir()}


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder is that of a checkpoint, verified or not."""
    return (Path(path) / _MANIFEST).is_file()


def steps(folder: str | os.PathLike[str]) -> list[int]:
    """Return the steps of which `folder` has a checkpoint, ascending; none are verified."""
    return sorted(_listed(Path(folder)))


def _read_manifest(path: Path) -> dict[str, Any]:
    place = path / _MANIFEST
    try:
        raw = place.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{place}: {error.strerror or error}") from error
    try:
        content = json.loads(raw)
        del content["sha256"]
        sound = _manifest(content) == raw
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise CheckpointError(f"{place}: damaged: its contents are not what was written")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{place}: expected format {FORMAT}, got {content['format']!r}")
    return content


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Verify every byte of a checkpoint's folder and return it.

    Raises:
        CheckpointError: a file is missing, of another size, or damaged; the message names it.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    if path.name != _name(manifest["step"]):
        raise CheckpointError(f"{path}: expected the name {_name(manifest['step'])}, for that is its step")
    for name, expected in manifest["files"].items():
        try:
            size = (path / name).stat().st_size
            found = _measure(path / name) if size == expected["bytes"] else None
        except OSError as error:
            raise CheckpointError(f"{path / name}: {error.strerror or error}") from error
        if found is None:
            raise CheckpointError(f"{path / name}: damaged: expected {expected['bytes']} bytes, got {size}")
        if found != expected:
            raise CheckpointError(f"{path / name}: damaged: its SHA-256 is not that of what was written")
    state = json.loads((path / _STATE).read_text(encoding="utf-8"))
    groups = tuple(name.removesuffix(".safetensors") for name in manifest["files"] if name.endswith(".safetensors"))
    return Checkpoint(path, manifest["step"], state, groups, manifest["best"])


def checkpoint_at(folder: str | os.PathLike[str], step: int) -> Checkpoint:
    """Verify the checkpoint of one step and return it.

    Raises:
        FileNotFoundError: there is none of that step; the message lists those there are.
        CheckpointError: it is damaged.
    """
    if step not in steps(folder):
        there = ", ".join(map(str, steps(folder))) or "none"
        raise FileNotFoundError(f"{folder}: no checkpoint of step {step}; there are: {there}")
    return open_checkpoint(Path(folder) / _name(step))


def newest_valid(
    folder: str | os.PathLike[str], say: Callable[[str], Any] = print, *, best: bool = False
) -> Checkpoint | None:
    """Return the latest checkpoint that is whole, or None when there is none.

    One that is damaged is passed over with a message that names file and reason. What killed saves left is removed,
    unless a save is under way or the folder cannot be written to.

    Args:
        folder: holds the checkpoints; need not exist.
        say: takes the messages.
        best: only those saved as the best so far.
    """
    folder = Path(folder)
    if folder.is_dir():
        try:
            with _writing(folder, timeout=0):
                _remove_leftovers(folder)
        except (OSError, Timeout):
            pass
    for step, path in sorted(_listed(folder).items(), reverse=True):
        if best and not _is_best(path):
            continue
        try:
            return open_checkpoint(path)
        except CheckpointError as error:
            if path.exists():  # else a training has just removed it
                say(f"checkpoint of step {step} is passed over: {error}")
    return None
