"""Load the C++/CUDA extension: the prebuilt one, else one compiled on first use, else say why not.

Nothing happens at import. :func:`ensure_loaded` does the work once per process; loading the shared object
registers its kernels with torch, so no second object is ever loaded after one has been. The only room that
touches ``_C``.

The cache of the just-in-time build holds one folder per setting (flags, torch, CUDA, architectures, instruction
set, compiler, Python). In it lie the objects that the next build starts from, and one folder per state of the
sources: the shared object, a manifest with its size and SHA-256 (written last, so that its presence means
"complete"), and, after a failure, a record of the compiler's message for the processes that were waiting. One
process builds under a lock of the operating system, which vanishes with its holder however that one dies; it
builds in a private folder and publishes by renaming.

A just-in-time build compiles the CPU kernels for one instruction set: the best of this machine, or what
MIXSYN_FAST_CPU lowers it to. That choice is part of the setting, so another one is compiled when first asked for.

Environment: MIXSYN_FAST_DISABLE_JIT=1 (prebuilt or nothing), MIXSYN_FAST_CACHE (cache folder),
MIXSYN_FAST_CSRC (other sources), MIXSYN_FAST_SANITIZE=1 (AddressSanitizer and UBSan), MIXSYN_FAST_CPU (a
lower instruction set), MAX_JOBS, CXX, CUDA_HOME, TORCH_CUDA_ARCH_LIST, FORCE_CPU, FORCE_CUDA.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._build import BuildError, Config

REPLAY_SECONDS = 30.0  # a recorded failure also answers processes that start this soon after it
_MODULE = "mixsyn_fast._C"


class ExtensionWarning(UserWarning):
    """The prebuilt extension is not used, or the cache had to move; the message says why."""


class _State:
    """What this process knows about its extension."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.tried = False
        self.origin: str | None = None  # "prebuilt" or "jit"
        self.path: Path | None = None
        self.manifest: dict[str, Any] = {}
        self.info: dict[str, Any] = {}
        self.isa: str | None = None
        self.failure: str | None = None
        self.cause: str | None = None
        self.notes: list[str] = []
        self.seconds = 0.0


_state: _State = globals().get("_state") or _State()  # a reloaded module keeps what its former life loaded


def _after_fork() -> None:
    _state.lock = threading.RLock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# --------------------------------------------------------------------------------------------------
# The questions others ask
# --------------------------------------------------------------------------------------------------


def ensure_loaded() -> bool:
    """Load the extension if that has not been tried yet, compiling it when necessary.

    The first call may take as long as a compilation; later ones cost one attribute look-up. Safe to call from
    several threads and several processes at once. Never raises: :func:`failure` tells what went wrong.

    Returns:
        True when the native kernels are registered with torch.
    """
    if _state.tried:
        return _state.origin is not None
    with _state.lock:
        if not _state.tried:
            start = time.monotonic()
            try:
                _load()
            except Exception as error:  # a loader that fails for an unforeseen reason leaves the reference path
                _state.failure = str(error) or repr(error)
                _state.cause = getattr(error, "cause", "unforeseen")
            _state.seconds = time.monotonic() - start
            _state.tried = True
    return _state.origin is not None


def is_loaded() -> bool:
    """Return whether the extension has been loaded; does not try to."""
    return _state.origin is not None


def failure() -> str | None:
    """Return why loading failed and the command that mends it; None when it worked or has not been tried."""
    return _state.failure


def has_cuda() -> bool:
    """Return whether the loaded extension contains the CUDA kernels."""
    return _state.origin is not None and bool(_state.manifest.get("cuda"))


def instruction_set() -> str | None:
    """Return the instruction set of the CPU kernels: avx512, avx2, baseline, neon; None while no extension is loaded.

    It is the best that the extension has and the processor runs, or what MIXSYN_FAST_CPU lowered it to when it was loaded.
    """
    return _state.isa


def build_report() -> dict[str, Any]:
    """Return what is known about the extension, as plain JSON-serialisable values.

    Keys: ``tried``, ``loaded``, ``origin`` (``prebuilt``, ``jit`` or None), ``path``, ``failure``, ``cause``,
    ``notes`` (remarks such as a stale prebuilt object), ``instruction_set`` (:func:`instruction_set`), ``seconds``
    (this process's loading time), ``cache`` (folder of the just-in-time builds), ``manifest`` (recipe, sources, units,
    compiled of them, isas, compiler, torch, cuda, archs, cuda_reason, build seconds, processor seconds) and
    ``build_info`` (what the shared object says of itself).
    """
    return {
        "tried": _state.tried,
        "loaded": _state.origin is not None,
        "origin": _state.origin,
        "path": str(_state.path) if _state.path else None,
        "failure": _state.failure,
        "cause": _state.cause,
        "notes": list(_state.notes),
        "instruction_set": _state.isa,
        "seconds": round(_state.seconds, 3),
        "cache": str(_cache_candidates()[0]),
        "manifest": dict(_state.manifest),
        "build_info": dict(_state.info),
    }


# --------------------------------------------------------------------------------------------------
# Loading
# --------------------------------------------------------------------------------------------------


def _note(message: str) -> None:
    _state.notes.append(message)
    warnings.warn(f"mixsyn_fast: {message}", ExtensionWarning, stacklevel=6)


def _say(message: str) -> None:
    print(f"mixsyn_fast: {message}", file=sys.stderr, flush=True)


def _load() -> None:
    """Prebuilt, else just in time; fills ``_state`` or raises."""
    import torch  # noqa: F401  (its libraries must be in the process before ours asks for them)

    from . import _build

    _build.wanted_isa()  # a name that is none is an error whatever is loaded
    if (found := _build.find_torch()) is not None:
        found.check()
    if _load_prebuilt():
        return
    if _build.flag(os.environ, "MIXSYN_FAST_DISABLE_JIT"):
        raise _build.BuildError(
            "disabled",
            "no usable prebuilt extension, and MIXSYN_FAST_DISABLE_JIT=1 forbids compiling one",
            "unset MIXSYN_FAST_DISABLE_JIT, or install from source: pip install --no-build-isolation .",
        )
    for remaining in (2, 1, 0):
        try:
            path, manifest = _just_in_time(_build.configure(jit=True))
            break
        except _build.BuildError as error:
            if error.cause != "changed" or not remaining:
                raise
    try:
        _adopt("jit", path, manifest)
    except OSError as error:
        raise _build.BuildError(
            "load",
            f"the extension was compiled but could not be loaded: {_why_not_loaded(error)}",
            f"remove {path.parent} and try again; if that does not help, report this message",
        ) from error


def _load_prebuilt() -> bool:
    """Load the object that setup.py built, when there is one made from the present sources."""
    import importlib.machinery

    from . import _build

    package = Path(__file__).resolve().parent
    found = [package / f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    path = next((path for path in found if path.is_file()), None)
    if path is None or _build.flag(os.environ, "MIXSYN_FAST_SANITIZE"):
        return False
    mend = "compiling just in time instead; `pip install --no-build-isolation .` (-e in a clone) renews it"
    manifest = _build.read_manifest(package / _build.MANIFEST)
    if manifest is None or manifest["library"] != path.name:
        _note(f"the prebuilt extension {path.name} is damaged or lacks its manifest; {mend}")
        return False
    try:
        if manifest["recipe"] != _build.recipe(_build.sources_hash(_build.find_csrc())):
            if not os.environ.get("MIXSYN_FAST_CSRC"):
                _note(f"the prebuilt extension {path.name} was made from other sources; {mend}")
            return False
    except _build.BuildError:
        pass  # no sources to compare with, none to compile either
    if not manifest.get("cuda") and _wants_cuda():
        why = manifest.get("cuda_reason")
        _note(f"the prebuilt extension has no CUDA kernels ({why}) and this machine has a GPU; {mend}")
        return False
    try:
        _adopt("prebuilt", path, manifest)
    except OSError as error:
        _note(f"the prebuilt extension {path.name} does not load ({_why_not_loaded(error)}); {mend}")
        return False
    return True


def _why_not_loaded(error: OSError) -> str:
    """Return the loader's words as a sentence: a missing symbol means that this torch is not the one it was made for."""
    import re

    from . import _build

    symbol, torch = re.search(r"undefined symbol: (\w+)", str(error)), _build.find_torch()
    if symbol is None or torch is None:
        return str(error)
    return f"torch {torch.version} lacks {symbol[1]}" + (f"; {torch.untried}" if torch.untried else "")


def _wants_cuda() -> bool:
    """Whether a just-in-time build would add CUDA kernels that a CPU-only prebuilt object lacks."""
    import torch

    from . import _build

    if torch.version.cuda is None or _build.flag(os.environ, "FORCE_CPU"):
        return False
    if _build.flag(os.environ, "MIXSYN_FAST_DISABLE_JIT") or not _build.visible_archs():
        return False
    try:
        return _build.configure(jit=True).cuda
    except _build.BuildError:
        return False


def _adopt(origin: str, path: Path, manifest: dict[str, Any]) -> None:
    """Load a shared object into the process. OSError: it did not load, and nothing was registered."""
    import ctypes
    import importlib.util

    library = ctypes.CDLL(str(path))  # all symbols are resolved here, before any kernel registers itself
    if (name := getattr(library, "mixsyn_fast_instruction_set", None)) is not None:  # other sources may lack it
        name.restype = ctypes.c_char_p
        _state.isa = name().decode() or None
    _state.origin, _state.path, _state.manifest = origin, path, manifest
    if "module.cpp" not in manifest.get("units", ["module.cpp"]):
        return  # built without Python.h: kernels, but no build information
    try:
        spec = importlib.util.spec_from_file_location(_MODULE, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is no extension module")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        _state.notes.append(f"the kernels are loaded, the build information is not: {error}")
        return
    sys.modules[_MODULE] = module
    _state.info = module.build_info()


# --------------------------------------------------------------------------------------------------
# Just-in-time build
# --------------------------------------------------------------------------------------------------


def _private_temporary_folder() -> Path:
    """Return a folder of this user's below the system's temporary folder; not created yet."""
    import tempfile

    return Path(tempfile.gettempdir()) / f"mixsyn_fast-{os.getuid() if hasattr(os, 'getuid') else 'user'}"


def _cache_candidates() -> list[Path]:
    """Return the cache folders in order of preference: the chosen or usual one, then a temporary one."""
    if chosen := os.environ.get("MIXSYN_FAST_CACHE"):
        first = Path(chosen).expanduser().absolute()
    elif base := os.environ.get("XDG_CACHE_HOME"):
        first = Path(base) / "mixsyn_fast"
    else:
        first = Path(os.path.expanduser("~")) / ".cache" / "mixsyn_fast"
    return list(dict.fromkeys([first, _private_temporary_folder() / "cache"]))


def _is_own(folder: Path) -> bool:
    """Whether nobody else could have put files there: temporary folders are shared with other users."""
    if not hasattr(os, "getuid"):
        return True
    try:
        status = folder.lstat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _make_writable(folder: Path) -> str | None:
    """Create a folder and write into it; return what went wrong, None when nothing did."""
    import tempfile

    temporary = _private_temporary_folder()
    try:
        if temporary in (folder, *folder.parents):
            temporary.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_own(temporary):
                return f"{temporary} belongs to somebody else"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        return f"{error.strerror or error}: {folder}"
    return None


def _usable_caches() -> Iterator[Path]:
    temporary = _private_temporary_folder()
    for cache in _cache_candidates():
        if temporary not in cache.parents or _is_own(temporary):
            yield cache


def _finished(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the complete, unchanged shared object of a folder and its manifest."""
    from . import _build

    manifest = _build.read_manifest(folder / _build.MANIFEST)
    return None if manifest is None else (folder / str(manifest["library"]), manifest)


def _just_in_time(config: Config) -> tuple[Path, dict[str, Any]]:
    """Return the shared object for ``config``, building it unless some process already has.

    Raises:
        BuildError: the build failed, here or in the process this one was waiting for.
    """
    from . import _build

    key = Path(_build.settings_key(config)) / config.sources
    for cache in _usable_caches():
        if found := _finished(cache / key):
            return found
    problems = []
    for cache in _cache_candidates():
        problem = _make_writable(cache / key)
        if problem is None:
            if problems:
                _note(f"the cache folder cannot be written ({problems[0]}); using {cache}")
            return _build_locked(config, cache / key)
        problems.append(problem)
    raise _build.BuildError(
        "space" if any("space" in problem for problem in problems) else "cache",
        "no cache folder can be written: " + "; ".join(problems),
        "set MIXSYN_FAST_CACHE to a folder that can be written",
    )


def _lock_path(folder: Path) -> Path:
    """Return the lock of a setting's folder: on a local file system where possible (others lock unreliably)."""
    import hashlib

    locks = _private_temporary_folder() / "locks"
    if _make_writable(locks) is None:
        return locks / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:32]}.lock"
    return folder / "lock"


def _build_locked(config: Config, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Build in ``folder`` unless another process does or just did."""
    from filelock import FileLock, Timeout

    from . import _build

    wanted_since = time.time()
    lock = FileLock(_lock_path(folder.parent))
    try:
        lock.acquire(timeout=1.0, poll_interval=0.05)
    except Timeout:
        _say(f"waiting for another process that compiles the C++ extension in {folder}")
        lock.acquire(poll_interval=0.05)
    try:
        if found := _finished(folder):
            return found
        if known := _recorded_failure(folder, wanted_since):
            raise known
        try:
            return _build_and_publish(config, folder)
        except _build.BuildError as error:
            if error.cause != "changed":
                _record_failure(folder, error)
            raise
        except OSError as error:
            cause, hint = _build.diagnose(str(error), 0)
            failed = _build.BuildError(cause, f"the C++ extension could not be stored: {error}", hint)
            _record_failure(folder, failed)
            raise failed from error
    finally:
        lock.release()


def _build_and_publish(config: Config, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Compile in a private folder and move the result into place; the manifest last."""
    import json
    import shutil
    import tempfile

    from . import _build

    for left in folder.parent.glob("build-*"):  # of builders that were killed: we hold the lock, nobody works there
        shutil.rmtree(left, ignore_errors=True)
    units = _build.translation_units(config)
    what = ("C++ and CUDA" if config.cuda else "C++") + f" extension{' for ' if config.isas else ''}{', '.join(config.isas)}"
    _say(f"compiling the {what} ({len(units)} files, {_build.max_jobs(units)} at a time, once) in {folder}")
    private = Path(tempfile.mkdtemp(prefix="build-", dir=folder.parent))
    try:
        built = private / "_C.so"
        manifest = _build.build(config, folder.parent, built)
        library = f"_C-{str(manifest['sha256'])[:12]}.so"
        manifest["library"] = library
        side = private / _build.MANIFEST
        side.write_text(json.dumps(manifest, indent=1))
        os.replace(built, folder / library)
        os.replace(side, folder / _build.MANIFEST)
        (folder / "failure.json").unlink(missing_ok=True)
        for old in folder.glob("_C-*.so"):
            if old.name != library:
                old.unlink(missing_ok=True)
    finally:
        shutil.rmtree(private, ignore_errors=True)
    _say(_build.what_was_compiled(manifest))
    return folder / library, manifest


def _record_failure(folder: Path, error: BuildError) -> None:
    """Leave the message for the processes that wait for this build."""
    import json

    record = {"cause": error.cause, "message": error.message, "hint": error.hint}
    record |= {"time": time.time(), "pid": os.getpid()}
    temporary = folder / f"failure.{os.getpid()}"
    try:
        temporary.write_text(json.dumps(record))
        os.replace(temporary, folder / "failure.json")
    except OSError:
        pass  # no space: the next process finds out for itself


def _recorded_failure(folder: Path, wanted_since: float) -> BuildError | None:
    """Return another process's failure if it answers this one: we waited for it, or it is seconds old."""
    import json

    from . import _build

    try:
        record = json.loads((folder / "failure.json").read_text())
        if not wanted_since - REPLAY_SECONDS <= record["time"] <= time.time() + 1.0:
            return None
        said = f"{record['message']}\n(reported by process {record['pid']}, which compiled for this one)"
        return _build.BuildError(record["cause"], said, record["hint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
