"""What the tests of CUDA and Triton kernels share: where kernels run, and how their arguments lie in memory.

Without a GPU the CUDA sources run in the emulation, and the Triton kernels in the interpreter, in a process of their own:
TRITON_INTERPRET=1 must be set before triton is imported, and must not leak into a process that launches kernels on a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests import processes
from tests.emulation import emulated

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
TARGETS = [
    "emulated",
    pytest.param("native", marks=[pytest.mark.gpu, NO_GPU]),
    pytest.param("triton", marks=[pytest.mark.gpu, NO_GPU]),
]
LAYOUTS = pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
# float32 in both layouts; types differ in loads, stores and the type of sums alone, so one layout each does
_DTYPES_AND_LAYOUTS = [(DTYPES[0], True), (DTYPES[0], False), *zip(DTYPES[1:], (False, True, False), strict=True)]
DTYPES_AND_LAYOUTS = pytest.mark.parametrize(("dtype", "channels_last"), _DTYPES_AND_LAYOUTS, ids=str)


def shapes_dtypes_layouts(shapes: Sequence[tuple[int, ...]]) -> pytest.MarkDecorator:
    """Parametrize ``shape``, ``dtype``, ``channels_last``: each shape in float32, the first one in every type."""
    cases = [(shape, *case) for shape in shapes for case in _DTYPES_AND_LAYOUTS[: 2 if shape != shapes[0] else None]]
    return pytest.mark.parametrize(("shape", "dtype", "channels_last"), cases, ids=str)


class Target(NamedTuple):
    """The two kernels of an op, and the device they run on."""

    name: str
    device: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]


def kernels_of(target: str, stem: str, names: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the device and the kernels of one of :data:`TARGETS`; skips where the target is not possible.

    Args:
        target: ``emulated``, ``native`` or ``triton``.
        stem: name of the op's file.
        names: of the kernels.
    """
    if target == "emulated":
        if (reason := emulated.missing()) is not None:
            pytest.skip(reason)
        return ("cpu", *(getattr(emulated.ops(), name) for name in names))
    if target == "native":
        from mixsyn_fast import extension

        assert extension.ensure_loaded(), extension.failure()
        assert extension.has_cuda(), "the extension was built without its CUDA kernels"
        return ("cuda", *(getattr(torch.ops.mixsyn_fast, name) for name in names))
    launchers = importlib.import_module(f"mixsyn_fast.ops.triton_kernels.{stem}")
    return ("cuda", *(getattr(launchers, name) for name in names))


def target_of(target: str, stem: str) -> Target:
    """Return the kernels ``<stem>`` and ``<stem>_backward`` of one of :data:`TARGETS`."""
    return Target(target, *kernels_of(target, stem, (stem, f"{stem}_backward")))


def dense(t: Tensor, channels_last: bool, shifted: bool = False) -> Tensor:
    """Lay a tensor out densely, optionally off the alignment of vectors."""
    t = t.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    if not shifted:
        return t
    storage = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)
    return storage[1:].as_strided(t.shape, t.stride(), 1).copy_(t)


# --- Triton without a GPU ----------------------------------------------------------------------------------------------


def run_in_interpreter(file: str) -> None:
    """Run the tests of a file in a process of its own with TRITON_INTERPRET=1."""
    code = "import sys, pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-p', 'no:xdist', *sys.argv[1:]]))"
    done = processes.run_fresh(code, [file], {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}, timeout=900)
    assert done.returncode == 0, done.output[-10000:]
    print(done.output.splitlines()[-1])


def assert_dies(target: str, device: str, code: str, message: str) -> None:
    """Run code that an assertion of the device must end, with a message, in a process of its own.

    Args:
        target: where ``ops`` of the code comes from: ``emulated`` or ``native``.
        device: of the kernels.
        code: Python that may use ``torch`` and ``ops``.
        message: what is said.
    """
    emulation = "from tests.emulation import emulated\nops = emulated.ops()"
    native = "from mixsyn_fast import extension, ops\nextension.ensure_loaded()\nops = torch.ops.mixsyn_fast"
    load = native if target == "native" else emulation
    end = "torch.cuda.synchronize()" if device == "cuda" else ""
    done = processes.run(f"import torch\n{load}\n{code}\n{end}\nprint('survived')")
    assert done.returncode != 0 and "survived" not in done.output
    assert message in done.output, done.output


def half_of(forms: Sequence[Any], capability: int) -> Sequence[Any]:
    """Every second form: sm_80 and sm_90 between them compile all, which takes half of the time."""
    return forms[capability == 90 :: 2]


def triton_compiler(capability: int) -> tuple[Any, Any]:
    """Return triton's compiler module and the target for a compute capability; skips where triton cannot compile for it."""
    compiler = pytest.importorskip("triton.compiler")
    backends = pytest.importorskip("triton.backends.compiler")
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 4):
        pytest.skip(f"triton {triton.__version__} describes kernels in another way")
    if "nvidia" not in triton.backends.backends:
        pytest.skip("this triton has no NVIDIA backend")
    return compiler, backends.GPUTarget("cuda", capability, 32)


def signature(fn: Any, kinds: Mapping[str, str], acc: str, absent: set[str], ones: set[str]) -> tuple[dict, dict]:
    """Types and constants of a Triton kernel's arguments, told from their names.

    Args:
        fn: the kernel.
        kinds: type of the arguments that are no pointers to ``acc``; names in capitals are int32.
        acc: accumulation type.
        absent: arguments that are None.
        ones: arguments that are the constant one.
    """
    types, constants = {}, {}
    for p in fn.params:
        if p.is_constexpr:
            types[p.name] = "constexpr"
        elif p.name in absent or p.name in ones:
            types[p.name] = "constexpr"
            constants[p.name] = None if p.name in absent else 1
        elif p.name.isupper():
            types[p.name] = "i32"
        else:
            types[p.name] = kinds.get(p.name, f"*{acc}")
    return types, constants
