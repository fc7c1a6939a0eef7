"""Build of mixsyn_fast: the metadata is in pyproject.toml, the compiler's part in mixsyn_fast/_build.py.

The extension is compiled by ninja when torch's headers are found (without importing torch), with its objects kept
below build/; otherwise the package is
installed without it and compiles it just in time on first use. Nothing here installs, upgrades or changes a
torch.

Environment: FORCE_CPU=1 / FORCE_CUDA=1, TORCH_CUDA_ARCH_LIST, CUDA_HOME, CXX, MAX_JOBS,
MIXSYN_FAST_PREBUILD=0 (leave the extension to the just-in-time build).
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def load_build() -> ModuleType:
    """Return mixsyn_fast/_build.py as a module, without importing the package (that would import torch)."""
    spec = importlib.util.spec_from_file_location("_mixsyn_fast_build", ROOT / "mixsyn_fast" / "_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_build = load_build()


def reason_for_jit() -> str | None:
    """Return why the extension is not built now, or None when it can be.

    Raises:
        BuildError: FORCE_CUDA=1 asks for what this machine cannot do.
    """
    if os.environ.get("MIXSYN_FAST_PREBUILD") == "0":
        return "MIXSYN_FAST_PREBUILD=0"
    try:
        _build.configure(jit=False, csrc=ROOT / "csrc")
    except _build.BuildError as error:
        if _build.flag(os.environ, "FORCE_CUDA"):
            raise
        return f"{error.message} ({error.hint})"
    return None


class BuildExtension(build_ext):
    """Compile with the commands of mixsyn_fast/_build.py and write the manifest beside the shared object."""

    def build_extension(self, ext: Extension) -> None:
        """Build the one extension there is into the build folder."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        config = _build.configure(jit=False, csrc=ROOT / "csrc")
        torch = config.torch.version
        cuda = f"CUDA {config.nvcc_version} for {' '.join(config.archs)}" if config.cuda else "no CUDA"
        print(f"mixsyn_fast: {config.compiler_version}; torch {torch}; {cuda}; {config.cuda_reason}")
        # Not below build_temp, which is thrown away in an editable install: what is unchanged is not compiled again.
        manifest = _build.build(config, ROOT / "build" / _build.settings_key(config), target)
        (target.parent / _build.MANIFEST).write_text(json.dumps(manifest, indent=1))
        print(f"mixsyn_fast: {_build.what_was_compiled(manifest)}")

    def copy_extensions_to_source(self) -> None:
        """Take the manifest along in an editable install."""
        super().copy_extensions_to_source()
        for ext in self.extensions:
            inplace, regular = self._get_inplace_equivalent(self.get_finalized_command("build_py"), ext)
            source, target = (str(Path(place).parent / _build.MANIFEST) for place in (regular, inplace))
            self.copy_file(source, target)

    def get_outputs(self) -> list[str]:
        """Name the manifest among the outputs, so that installers record it."""
        outputs = super().get_outputs()
        return outputs + [str(Path(output).parent / _build.MANIFEST) for output in outputs]


jit = reason_for_jit()
if jit is not None:
    print(f"mixsyn_fast: the C++ extension is left to the just-in-time build: {jit}", file=sys.stderr)

FOLDERS = [ROOT / "csrc", *(place for place in ROOT.glob("csrc/**/*") if place.is_dir())]
CSRC = [".".join(("mixsyn_fast._csrc", *place.relative_to(ROOT / "csrc").parts)) for place in FOLDERS]

setup(
    packages=[
        *find_packages(include=["mixsyn_fast", "mixsyn_fast.*"]),
        "mixsyn_fast.models",
        *(f"mixsyn_fast.models.{name}" for name in find_packages("models")),
        *CSRC,  # the sources travel in the wheel, for the just-in-time build
    ],
    package_dir={"mixsyn_fast": "mixsyn_fast", "mixsyn_fast.models": "models", "mixsyn_fast._csrc": "csrc"},
    package_data={
        "": ["py.typed", "README.md", "*.json", "*.npz", "weights/*", "recipes/*"],
        **{name: [f"*{suffix}" for suffix in _build.SOURCE_SUFFIXES] for name in CSRC},
    },
    exclude_package_data={"mixsyn_fast": [_build.MANIFEST]},  # of an editable install; a wheel gets its own
    # _build.translation_units names the sources; setuptools only needs to know that there is an extension.
    ext_modules=[] if jit is not None else [Extension("mixsyn_fast._C", sources=["csrc/module.cpp"])],
    cmdclass={"build_ext": BuildExtension},
)
