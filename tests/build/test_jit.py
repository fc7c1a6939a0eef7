"""The just-in-time loader survives what happens to loaders: crowds, kill -9, damage, read-only homes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mixsyn_fast import _build


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    """Wait until ``condition()`` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_op_is_registered_by_loading(bench, tiny_op):
    bench.sources(tiny=tiny_op)
    process = bench.start(
        "import torch\nfrom mixsyn_fast import extension\n"
        "assert not extension.is_loaded()\n"
        "assert extension.ensure_loaded(), extension.failure()\n"
        "assert extension.is_loaded() and not extension.has_cuda() and extension.failure() is None\n"
        "print(torch.ops.mixsyn_tiny.forty_two())"
    )
    out, err = process.communicate(timeout=120)
    assert out.strip() == "42", err


def test_nothing_is_built_or_imported_at_import(bench, plain):
    bench.sources(plain=plain)
    code = (
        "import sys, torch\nbefore = set(sys.modules)\nimport mixsyn_fast.extension\n"
        "print(sorted(m for m in ('mixsyn_fast._build', 'filelock', 'subprocess')"
        " if m in sys.modules and m not in before))"
    )
    out, err = bench.start(code).communicate(timeout=60)
    assert out.strip() == "[]", err
    assert not bench.cache.exists()


def test_second_process_takes_the_cached_object(bench, plain):
    bench.sources(plain=plain)
    bench.counting_compiler()
    first, second = bench.load(), bench.load()
    assert first["origin"] == second["origin"] == "jit"
    assert first["path"] == second["path"]
    assert bench.compilations() == 1
    said = [line for line in first["stderr"].splitlines() if line.startswith("mixsyn_fast:")]
    assert len(said) == 2, "a line when it starts and one when it is done, without a terminal too"
    assert "compiling the C++ extension (1 files, 1 at a time, once) in" in said[0]
    assert re.search(r"compiled 1 of 1 files in [\d.]+ s \([\d.]+ s of processor time\)", said[1])
    assert "compil" not in second["stderr"]


@pytest.mark.parametrize("change", ["source", "header", "flags", "compiler", "architecture-of-cache"])
def test_key_follows_what_decides_the_object(bench, plain, change):
    folder = bench.sources(plain=plain)
    bench.counting_compiler()
    before = bench.load()["path"]
    env = {}
    if change == "source":
        bench.sources(plain=plain.replace("42", "43"))
    elif change == "header":
        (folder / "cpu").mkdir()
        (folder / "cpu" / "used.h").write_text("// new\n")
        bench.sources(plain=f'#include "cpu/used.h"\n{plain}')
    elif change == "flags":
        env = {"MIXSYN_FAST_SANITIZE": "1", "LD_PRELOAD": sanitizer_libraries()}
    elif change == "compiler":
        old = Path(bench.env["CXX"])
        bench.env["CXX"] = str(old.rename(old.with_name("other-cxx")))
    else:
        env = {"MIXSYN_FAST_CACHE": str(bench.root / "elsewhere")}
    report = bench.load(ASAN_OPTIONS="detect_leaks=0", **env)
    assert report["loaded"], report["failure"]
    assert bench.compilations() == 2 and report["path"] != before


def test_edit_compiles_what_includes_it(bench, plain):
    """The objects of the last state of the sources are kept; whoever asks for the new one compiles the difference."""
    folder = bench.sources(one='#include "one.h"\n', two="int two;\n", plain=plain)
    (folder / "one.h").write_text("// first\n")
    assert len(bench.load()["manifest"]["compiled"]) == 3
    (folder / "one.h").write_text("// second\n")
    report = bench.load()
    assert report["manifest"]["compiled"] == ["one_cpu.cpp"] and len(report["manifest"]["units"]) == 3
    assert "compiled 1 of 3 files" in report["stderr"]


@pytest.fixture
def speaking(bench, repository) -> Any:
    """Sources of a CPU kernel whose object tells the instruction set it runs: the real choice, a tiny kernel."""
    chosen = '#include "cpu/tiny.h"\nextern "C" __attribute__((visibility("default"))) const char* mixsyn_isa() '
    folder = bench.sources(tiny=chosen + "{ return *mixsyn_fast::cpu::tiny<int, int>().name; }\n")
    (folder / "cpu").mkdir()
    shutil.copy(repository / "csrc" / "cpu" / "isa.h", folder / "cpu")
    shutil.copy(repository / "csrc" / "isa_cpu.cpp", folder)
    (folder / "cpu" / "tiny.h").write_text(
        '#pragma once\n#include "isa.h"\nnamespace mixsyn_fast::cpu {\n'
        "template <typename T, typename A> struct Tiny { const char* const* name; };\n"
        "MIXSYN_CPU_KERNELS(Tiny, tiny)\n}\n"
    )
    (folder / "cpu" / "tiny.cpp").write_text(
        '#include "tiny.h"\n#define TEXT_(x) #x\n#define TEXT(x) TEXT_(x)\nnamespace mixsyn_fast::cpu::MIXSYN_ISA {\n'
        "static const char* const kName = TEXT(MIXSYN_ISA);\n"
        "template <typename T, typename A> const Tiny<T, A>& tiny() { static Tiny<T, A> t = {&kName}; return t; }\n"
        "template const Tiny<int, int>& tiny<int, int>();\n}\n"
    )
    return folder


ASK = "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).mixsyn_isa; f.restype = ctypes.c_char_p; print(f().decode())"


def spoken(library: Path | str, **env: str) -> str:
    """Return the instruction set that an object chooses in a new process."""
    command = [sys.executable, "-c", ASK, str(library)]
    return subprocess.check_output(command, text=True, env={**os.environ, **env}).strip()


def test_one_instruction_set_is_compiled_and_another_when_asked_for(bench, speaking):
    """MIXSYN_FAST_CPU is part of the key: a lower one is compiled then, not missing and not ignored."""
    (best, *lower), native = _build.instruction_sets(["g++"], speaking)
    first = bench.load()
    assert first["manifest"]["isas"] == [native] and f"extension for {native} (" in first["stderr"]
    assert [unit for unit in first["manifest"]["units"] if "cpu/" in unit] == [f"cpu/tiny.cpp for {native}"]
    assert spoken(first["path"]) == native
    for name in lower:
        report = bench.load(MIXSYN_FAST_CPU=name)
        assert report["manifest"]["isas"] == [name] and report["path"] != first["path"]
        assert spoken(report["path"], MIXSYN_FAST_CPU=name) == name
    assert bench.load()["path"] == first["path"], "and the first is still there"
    report = bench.load(MIXSYN_FAST_CPU="sse4")
    assert not report["loaded"] and report["cause"] == "cpu"
    assert "expected one of avx512, avx2, neon, baseline, got 'sse4'" in report["failure"]


def test_object_of_every_instruction_set_chooses_when_it_is_loaded(bench, speaking):
    """What setup.py builds; MIXSYN_FAST_CPU lowers the choice."""
    isas, native = _build.instruction_sets(["g++"], speaking)
    config = _build.configure(jit=False, csrc=speaking, environ={"PATH": os.environ["PATH"], "FORCE_CPU": "1"})
    library = bench.root / "_C.so"
    manifest = _build.build(replace(config, rpaths=(str(config.torch.root / "lib"),)), bench.root / "build", library)
    assert manifest["isas"] == list(isas) and len(manifest["units"]) == 2 + len(isas)
    assert spoken(library) == native
    for wanted in isas:
        assert spoken(library, MIXSYN_FAST_CPU=wanted) == max(wanted, native, key=isas.index)


def test_object_of_another_processor_says_so(bench, speaking):
    """One instruction set that this processor lacks: a sentence, not an illegal instruction."""
    facts = speaking / "cpu" / "isa.h"
    nothing = facts.read_text().replace("RUNS_baseline true", "RUNS_baseline false")
    facts.write_text(nothing.replace("__builtin_cpu_supports", "false && "))
    path = bench.load()["path"]
    said = subprocess.run([sys.executable, "-c", ASK, path], capture_output=True, text=True)
    assert said.returncode != 0 and "compiled for a processor with other instructions" in said.stderr


def sanitizer_libraries() -> str:
    """Return what LD_PRELOAD has to hold before a sanitized object can be loaded."""
    names = ("libasan.so", "libubsan.so")
    found = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in names]
    if not all(Path(path).is_absolute() for path in found):
        pytest.skip("the sanitizers' run-time libraries are not installed")
    return " ".join(found)


def test_crowd_compiles_once(bench, plain):
    """Small sources: four processes, one compilation, everybody loads the same object."""
    bench.sources(plain=plain)
    bench.counting_compiler(before="sleep 1")
    reports = [bench.finish(process) for process in [bench.start() for _ in range(4)]]
    assert all(report["loaded"] for report in reports), [report["failure"] for report in reports]
    assert len({report["path"] for report in reports}) == 1
    assert bench.compilations() == 1


def test_processes_start_cold_with_real_sources(bench, repository, load_fully):
    """The way a user's program does, with torch: the smallest op, its kernels, the module."""
    bench.counting_compiler()
    csrc = bench.root / "csrc"
    real = repository / "csrc"
    names = ["module.cpp", "isa_cpu.cpp", "latent_blend_cpu.cpp", "cpu/latent_blend.cpp"]
    for path in [*real.glob("*.h"), *real.glob("cpu/**/*.h"), *(real / name for name in names)]:
        (csrc / path.relative_to(real)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, csrc / path.relative_to(real))
    bench.env["MIXSYN_FAST_CSRC"] = str(csrc)
    reports = [bench.finish(process, 400) for process in [bench.start(load_fully) for _ in range(3)]]
    assert all(report["loaded"] for report in reports), [report["failure"] for report in reports]
    assert bench.compilations() == len(reports[0]["manifest"]["units"]) == 4
    assert reports[0]["build_info"]["torch_target_version"] == _build.TORCH_TARGET_VERSION
    assert reports[0]["build_info"]["cxx_standard"] == 201703


def test_killed_builder_does_not_block_the_next(bench, plain):
    bench.sources(plain=plain)
    bench.counting_compiler(before=f"[ -e {bench.root}/quick ] || sleep 30")
    builder = bench.start()
    wait_for(lambda: bench.compilations() == 1)
    waiter = bench.start()
    time.sleep(2.5)  # long enough to be waiting
    os.kill(builder.pid, signal.SIGKILL)
    builder.wait()
    (bench.root / "quick").touch()
    killed = time.monotonic()
    report = bench.finish(waiter)
    waited = time.monotonic() - killed
    os.kill(int(bench.log.read_text().split()[0]), signal.SIGKILL)  # the orphaned compiler
    assert report["loaded"], report["failure"]
    assert waited < 5.0 + report["manifest"]["seconds"]
    assert bench.load()["loaded"]
    assert not list(bench.cache.glob("*/build-*")), "the private folder of the dead builder was swept up"


def test_lock_left_by_a_dead_process_is_no_lock(bench, plain):
    """A start long after the kill, with every file the dead builder left still there."""
    bench.sources(plain=plain)
    bench.counting_compiler(before=f"[ -e {bench.root}/quick ] || sleep 30")
    builder = bench.start()
    wait_for(lambda: bench.compilations() == 1)
    os.kill(builder.pid, signal.SIGKILL)
    builder.wait()
    os.kill(int(bench.log.read_text().split()[0]), signal.SIGKILL)
    (bench.root / "quick").touch()
    report = bench.load()
    assert report["loaded"], report["failure"]
    assert report["seconds"] < 5.0 + report["manifest"]["seconds"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "removed", "manifest"])
def test_damaged_object_is_rebuilt(bench, plain, damage):
    bench.sources(plain=plain)
    library = Path(bench.load()["path"])
    content = library.read_bytes()
    if damage == "truncated":
        library.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        library.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    elif damage == "removed":
        library.unlink()
    else:
        (library.parent / "_C.json").write_text("{")
    report = bench.load()
    assert report["loaded"], report["failure"]
    assert Path(report["path"]).read_bytes()[:4] == b"\x7fELF"
    assert "compiling" in report["stderr"]


def test_read_only_home_uses_a_temporary_folder(bench, plain):
    """A file in the cache's place cannot be written by anybody, root included."""
    bench.sources(plain=plain)
    bench.counting_compiler()
    del bench.env["MIXSYN_FAST_CACHE"]
    (bench.root / "home" / ".cache").write_text("not a folder")
    report = bench.load()
    assert report["loaded"], report["failure"]
    assert str(bench.root / "tmp") in report["path"]
    assert any("cannot be written" in warning for warning in report["warnings"])
    assert bench.load()["path"] == report["path"]
    assert bench.compilations() == 1, "the object in the temporary folder is found again"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc")
def test_chosen_cache_that_cannot_be_created(bench, plain):
    bench.sources(plain=plain)
    report = bench.load(MIXSYN_FAST_CACHE="/proc/self/nowhere")
    assert report["loaded"], report["failure"]
    assert str(bench.root / "tmp") in report["path"]


def test_foreign_temporary_folder_is_not_trusted(bench, plain):
    """Somebody else may have prepared an object in the shared temporary folder: world-writable means no."""
    bench.sources(plain=plain)
    private = bench.root / "tmp" / f"mixsyn_fast-{os.getuid()}"
    private.mkdir()
    private.chmod(0o777)
    report = bench.load(MIXSYN_FAST_CACHE="/proc/self/nowhere")
    assert not report["loaded"]
    assert "belongs to somebody else" in report["failure"] and "MIXSYN_FAST_CACHE" in report["failure"]


def test_compile_error_reaches_every_waiting_process(bench):
    bench.sources(broken="#error deliberately broken\n")
    bench.counting_compiler(before="sleep 3")
    processes = [bench.start() for _ in range(4)]
    reports = [bench.finish(process) for process in processes]
    for report in reports:
        assert not report["loaded"]
        assert "deliberately broken" in report["failure"], "the compiler's own words"
        assert "broken_cpu.cpp:1" in report["failure"], "the user's file, not our copy of it"
        assert str(bench.root / "csrc" / "broken_cpu.cpp") in report["failure"]
        assert "To mend it:" in report["failure"]
    assert bench.compilations() == 1, "nobody compiled the same error again"


def test_mended_source_is_compiled_after_an_error(bench, plain):
    bench.sources(broken="#error deliberately broken\n")
    assert not bench.load()["loaded"]
    bench.sources(broken=plain)
    assert bench.load()["loaded"]


def test_old_failure_is_not_replayed(bench, plain):
    """What was out of memory an hour ago may fit now."""
    bench.sources(plain=plain)
    bench.counting_compiler(before=f"[ -e {bench.root}/quick ] || exit 1")
    assert not bench.load()["loaded"]
    (bench.root / "quick").touch()
    record = next(bench.cache.glob("*/*/failure.json"))
    said = json.loads(record.read_text())
    record.write_text(json.dumps({**said, "time": said["time"] - 3600}))
    report = bench.load()
    assert report["loaded"], report["failure"]
    assert not record.exists()


@pytest.mark.parametrize(
    ("behaviour", "cause", "hint"),
    [
        ("kill -9 $$", "memory", "MAX_JOBS=1"),
        ("echo 'g++: fatal error: Killed signal terminated program cc1plus'; exit 1", "memory", "MAX_JOBS=1"),
        (
            "echo 'fatal error: error writing to x.s: No space left on device'; exit 1",
            "space",
            "MIXSYN_FAST_CACHE",
        ),
        ("echo 'fatal error: cstdint: No such file or directory'; exit 1", "compiler", "apt install g++"),
    ],
)
def test_known_causes_have_a_hint(bench, plain, behaviour, cause, hint):
    bench.sources(plain=plain)
    bench.counting_compiler(before=behaviour)
    report = bench.load()
    assert not report["loaded"]
    assert report["cause"] == cause
    assert hint in report["failure"].split("To mend it:")[1]


@pytest.mark.parametrize("compiler", ["none", "bogus", "broken"])
def test_no_compiler_runs_the_reference_with_one_warning(bench, plain, compiler):
    bench.sources(plain=plain)
    env = no_compiler(bench, compiler)
    code = """
        import warnings
        import torch
        from mixsyn_fast import backend, extension
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            chosen = [backend.select_backend("region_norm", torch.device("cpu")) for _ in range(3)]
        print(set(chosen), len(caught))
        print(" ".join(str(warning.message) for warning in caught))
        print(extension.build_report()["cause"])
        """
    process = bench.start(code, **env)
    out, err = process.communicate(timeout=60)
    lines = out.strip().splitlines()
    assert lines[0] == "{'reference'} 1", out + err
    assert "apt install g++" in out and "CXX=" in out
    assert lines[-1] == "compiler"
    assert not bench.cache.exists()


def no_compiler(bench, kind: str) -> dict[str, str]:
    """Return the environment of a machine without a usable C++ compiler."""
    if kind == "none":
        (bench.root / "bin").mkdir()
        return {"PATH": str(bench.root / "bin")}
    if kind == "bogus":
        return {"CXX": "/nowhere/g++"}
    script = bench.root / "broken-cxx"
    script.write_text("#!/bin/sh\necho 'cannot execute cc1plus' >&2\nexit 1\n")
    script.chmod(0o755)
    return {"CXX": str(script)}


def test_no_compiler_is_an_error_in_strict_mode(bench, plain):
    bench.sources(plain=plain)
    code = """
        import torch
        from mixsyn_fast import backend
        backend.select_backend("region_norm", torch.device("cpu"))
        """
    process = bench.start(code, MIXSYN_FAST_STRICT="1", **no_compiler(bench, "bogus"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "RuntimeError" in err and "MIXSYN_FAST_STRICT" in err and "apt install g++" in err


def test_disabled_jit_compiles_nothing(bench, plain):
    bench.sources(plain=plain)
    bench.counting_compiler()
    report = bench.load(MIXSYN_FAST_DISABLE_JIT="1")
    assert not report["loaded"] and report["cause"] == "disabled"
    assert "unset MIXSYN_FAST_DISABLE_JIT" in report["failure"]
    assert bench.compilations() == 0 and not bench.cache.exists()


def test_threads_share_one_load(bench, plain):
    bench.sources(plain=plain)
    bench.counting_compiler()
    code = """
        import threading, torch
        from mixsyn_fast import extension
        answers = []
        load = lambda: answers.append(extension.ensure_loaded())
        threads = [threading.Thread(target=load) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print(answers == [True] * 8)
        """
    out, err = bench.start(code).communicate(timeout=120)
    assert out.strip() == "True", err
    assert bench.compilations() == 1


def test_reloaded_module_does_not_register_twice(bench, tiny_op):
    """Registering an op twice is an error in torch: a reloaded module must find its first object."""
    bench.sources(tiny=tiny_op)
    code = """
        import importlib, torch
        from mixsyn_fast import extension
        assert extension.ensure_loaded()
        extension = importlib.reload(extension)
        assert extension.ensure_loaded(), extension.failure()
        print(torch.ops.mixsyn_tiny.forty_two())
        """
    out, err = bench.start(code).communicate(timeout=120)
    assert out.strip() == "42", err


def test_object_that_does_not_load_is_reported(bench):
    """It compiles and links (a shared object may), but a symbol is missing."""
    bench.sources(missing="int nowhere(); int user = nowhere();\n")
    report = bench.load()
    assert not report["loaded"] and report["cause"] == "load"
    assert "nowhere" in report["failure"]


def test_sources_as_cpp20(repository, tmp_path):
    """torch itself moved to C++20; ours compile as both."""
    config = _build.configure(jit=True, csrc=repository / "csrc", environ={**os.environ, "FORCE_CPU": "1"})
    config = replace(config, standard=20)

    def check(unit: _build.Unit) -> str:
        command = _build.compile_command(config, unit, tmp_path / unit.object.name)
        assert "-std=c++20" in command
        return subprocess.run([*command, "-fsyntax-only"], capture_output=True, text=True).stderr

    with ThreadPoolExecutor(2) as pool:
        said = dict(zip(units := _build.translation_units(config), pool.map(check, units), strict=True))
    assert not {unit: words for unit, words in said.items() if "error:" in words}
