"""sdist, wheel and editable install work, from folders outside the clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SKIPPED = (".git", ".venv*", "build", "dist", "outputs", "*.egg-info", "*.so", "_C.json", "__pycache__", ".*_cache")
TRY = """
import json, torch, mixsyn_fast, mixsyn_fast.models
from mixsyn_fast import extension
extension.ensure_loaded()
report = extension.build_report()
print(json.dumps({"file": mixsyn_fast.__file__, "models": mixsyn_fast.models.__path__[0], **report}))
"""


def run(*command: object, cwd: Path, **env: str) -> str:
    """Run a command that has to succeed and return what it printed."""
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MIXSYN_FAST_CSRC")}
    said = subprocess.run([*map(str, command)], cwd=cwd, env={**environ, **env}, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
    return said.stdout


def report(folder: Path, *, cwd: Path, **env: str) -> dict:
    """Import what lies in ``folder`` from a folder outside the clone."""
    import json

    return json.loads(run(sys.executable, "-c", TRY, cwd=cwd, PYTHONPATH=str(folder), **env).splitlines()[-1])


@pytest.fixture(scope="module")
def sdist(repository, tmp_path_factory) -> Path:
    """The source distribution, unpacked outside the clone."""
    root = tmp_path_factory.mktemp("sdist")
    clone = shutil.copytree(repository, root / "clone", ignore=shutil.ignore_patterns(*SKIPPED))
    code = "from setuptools import build_meta as b; print(b.build_sdist('../dist'))"
    run(sys.executable, "-c", code, cwd=clone, MIXSYN_FAST_PREBUILD="0")
    (archive,) = (root / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(root / "unpacked", filter="data")
    (folder,) = (root / "unpacked").iterdir()
    shutil.rmtree(clone)
    return folder


@pytest.fixture(scope="module")
def small(sdist, tmp_path_factory) -> Path:
    """The same with the smallest op alone: compiled in seconds."""
    root = tmp_path_factory.mktemp("small") / "clone"
    shutil.copytree(sdist, root)
    kept = {"module.cpp", "isa_cpu.cpp", "latent_blend_cpu.cpp", "latent_blend.cpp"}
    for path in (root / "csrc").rglob("*.c*"):
        if path.suffix in (".cpp", ".cu") and path.name not in kept:
            path.unlink()
    return root


def wheel_of(sdist: Path, out: Path, **env: str) -> tuple[Path, Path]:
    """Build a wheel and install it into a folder; return both."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--quiet", "--no-build-isolation", "--no-deps", "-w", out, ".", cwd=sdist, **env)
    (wheel,) = out.glob("*.whl")
    run(*pip, "install", "--quiet", "--no-deps", "--target", out / "site", wheel, cwd=out)
    return wheel, out / "site"


def test_wheel_of_the_sdist_works_outside_the_clone(small, tmp_path):
    wheel, site = wheel_of(small, tmp_path, FORCE_CPU="1")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("mixsyn_fast/_C.") and name.endswith(".so") for name in names)
    assert "mixsyn_fast/_C.json" in names and "mixsyn_fast/_csrc/module.cpp" in names
    assert "mixsyn_fast/cpu_winners.json" in names and "mixsyn_fast/measure/ops/region_norm.py" in names
    assert {"mixsyn_fast/py.typed", "mixsyn_fast/models/__init__.py", "mixsyn_fast/models/stylefusion/trees.py"} <= set(
        names
    )
    shipped = ("facades.safetensors", "MODEL_CARD.md")
    assert {f"mixsyn_fast/models/{paper}/weights/{name}" for paper in ("mixsyn", "clvae") for name in shipped} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "csrc/", "models/"))]
    (tmp_path / "elsewhere").mkdir()
    found = report(site, cwd=tmp_path / "elsewhere", MIXSYN_FAST_DISABLE_JIT="1")
    assert found["origin"] == "prebuilt", found["failure"]
    assert found["file"].startswith(str(site)) and found["models"].startswith(str(site))
    assert found["build_info"]["compiler"] and not found["notes"]
    isas = found["manifest"]["isas"]
    assert "baseline" in isas, "runs on every processor"
    # The prebuilt object is damaged: it is said, and the sources inside the wheel are compiled.
    library = next((site / "mixsyn_fast").glob("_C.*.so"))
    library.write_bytes(library.read_bytes()[:4096])
    cache = {"MIXSYN_FAST_CACHE": str(tmp_path / "cache")}
    found = report(site, cwd=tmp_path / "elsewhere", **cache)
    assert found["origin"] == "jit" and "damaged" in found["notes"][0]
    assert len(found["manifest"]["isas"]) == 1 and found["manifest"]["isas"][0] in isas


def test_wheel_without_prebuilt_object_brings_the_sources(sdist, tmp_path, repository):
    wheel, site = wheel_of(sdist, tmp_path, MIXSYN_FAST_PREBUILD="0")
    assert wheel.name.endswith("-py3-none-any.whl")
    code = "from mixsyn_fast import _build; print(_build.find_csrc(), _build.sources_hash(_build.find_csrc()))"
    folder, fingerprint = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(site)).split()
    assert folder.startswith(str(site))
    from mixsyn_fast import _build

    assert fingerprint == _build.sources_hash(repository / "csrc"), "every source travels in the wheel"


def test_editable_install_follows_its_sources(small, tmp_path):
    clone = shutil.copytree(small, tmp_path / "clone", ignore=shutil.ignore_patterns("build"))
    install = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-build-isolation"]
    install += ["--no-deps", "--ignore-installed", "--prefix", tmp_path / "prefix", "-e", "."]
    run(*install, cwd=clone, FORCE_CPU="1")
    (site,) = (tmp_path / "prefix").glob("lib/python*/site-packages")
    # The environment of these tests holds an editable install of its own, whose finder has the same name.
    code = "import site, sys\nfor name in [n for n in sys.modules if n.startswith('__editable__')]: del sys.modules[name]\n"
    code += "sys.meta_path[:] = [f for f in sys.meta_path if '__editable__' not in getattr(f, '__module__', '')]\n"
    code += f"sys.path.insert(0, {str(site)!r})\nsite.addsitedir({str(site)!r})\n{TRY}"

    def load() -> dict:
        import json

        said = run(sys.executable, "-c", code, cwd=tmp_path, MIXSYN_FAST_CACHE=str(tmp_path / "cache"), FORCE_CPU="1")
        return json.loads(said.splitlines()[-1])

    found = load()
    assert found["origin"] == "prebuilt", found
    assert Path(found["file"]).parent == clone / "mixsyn_fast" and Path(found["models"]) == clone / "models"
    assert len(found["manifest"]["compiled"]) == len(found["manifest"]["units"])
    with (clone / "csrc" / "latent_blend_cpu.cpp").open("a") as file:
        file.write("// edited\n")
    run(*install, cwd=clone, FORCE_CPU="1")
    found = load()
    assert found["origin"] == "prebuilt" and found["manifest"]["compiled"] == ["latent_blend_cpu.cpp"], "the rest is kept"
    for path in (clone / "csrc").glob("cpu/*.cpp"):
        path.unlink()
    (clone / "csrc" / "latent_blend_cpu.cpp").unlink()
    found = load()
    assert found["origin"] == "jit" and "other sources" in found["notes"][0]


def test_hidden_torch_is_found_without_changing_it(sdist, tmp_path):
    """pip's build isolation hides site-packages; the interpreter's own folder is looked at all the same."""
    if not (Path(sysconfig.get_path("platlib")) / "torch").is_dir():
        pytest.skip("torch lies outside this environment's own folder")
    code = (
        "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]\n"
        "from importlib.util import spec_from_file_location, module_from_spec, find_spec\n"
        "assert find_spec('torch') is None\n"
        f"spec = spec_from_file_location('b', {str(sdist / 'mixsyn_fast' / '_build.py')!r})\n"
        "b = module_from_spec(spec); sys.modules['b'] = b; spec.loader.exec_module(b)\n"
        "print(b.find_torch().version)"
    )
    import torch

    assert run(sys.executable, "-c", code, cwd=tmp_path).strip() == torch.__version__
