"""latent_blend's Triton kernels without a GPU: run in Triton's interpreter, and compiled for sm_80 and sm_90.

The interpreter is chosen by TRITON_INTERPRET=1 before triton is imported, and must not leak into a process that
launches kernels on a GPU, so the tests of this file run in a process of their own.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch

from tests.ops.gpu_kernels import half_of, run_in_interpreter, triton_compiler

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

if INTERPRETED:
    from mixsyn_fast.ops.triton_kernels import latent_blend as launchers
    from tests.ops import test_latent_blend_cuda as shared
    from tests.ops.test_latent_blend_cuda import DTYPES, KINDS, SIDES, SMALL, STYLEGAN, Target, check, make

    SIDES_AND_KINDS = pytest.mark.parametrize(
        ("dtype", "q_on_b"), [(DTYPES[0], False), *((d, True) for d in DTYPES)], ids=str
    )
    TARGET = Target("interpreted", "cpu", launchers.latent_blend, launchers.latent_blend_backward)

    @SIDES_AND_KINDS
    def test_every_group(dtype: torch.dtype, q_on_b: bool) -> None:
        shared.test_every_group(TARGET, dtype, q_on_b)

    def test_published_layout() -> None:
        check(TARGET, make(1, STYLEGAN, 512, torch.float32, "cpu"), STYLEGAN, True)

    def test_strides_of_any_kind() -> None:
        """A slice is made dense."""
        data = make(2, SMALL, 16, torch.float32, "cpu")
        slices = [torch.stack((t, t), -1)[..., 0] for t in data]
        check(TARGET, shared.Data(*slices), SMALL, True)

    @SIDES
    def test_ties_go_to_the_first(q_on_b: bool) -> None:
        shared.test_ties_go_to_the_first(TARGET, q_on_b)

    @SIDES
    @KINDS
    def test_largest_or_smallest(dtype: torch.dtype, q_on_b: bool) -> None:
        shared.test_largest_or_smallest(TARGET, dtype, q_on_b)

    @SIDES_AND_KINDS
    def test_nan_propagates(dtype: torch.dtype, q_on_b: bool) -> None:
        shared.test_nan_propagates(TARGET, dtype, q_on_b)

    @SIDES
    def test_absent_gradients(q_on_b: bool) -> None:
        shared.test_absent_gradients(TARGET, q_on_b)

    @pytest.mark.parametrize("batch,channels", [(0, SMALL), (2, ())], ids=["no images", "no layers"])
    def test_empty(batch: int, channels: tuple[int, ...]) -> None:
        shared.test_empty(TARGET, batch, channels)

else:

    def test_in_the_interpreter() -> None:
        """Run this file's tests with TRITON_INTERPRET=1."""
        run_in_interpreter(__file__)

    @pytest.mark.parametrize("capability", [80, 90])
    def test_compiles(capability: int) -> None:
        """Both kernels become machine code, in the forms that differ: dtypes, sides, absent gradients, sizes of one."""
        compiler, target = triton_compiler(capability)
        import triton
        import triton.language as tl

        from mixsyn_fast.ops.triton_kernels import latent_blend as kernels

        forms: list[tuple[str, set[str], tuple[int, ...], bool, set[str]]] = [
            # dtype, arguments equal to one, first channels, q on b, absent
            ("bf16", set(), (0, 512, 768, 800), True, set()),
            ("fp16", set(), (0, 32), False, {"grad_q"}),
            ("fp32", {"S", "D"}, (0, 1), False, {"grad"}),
            ("fp64", set(), (0, 512, 576), True, set()),
        ]
        names = [name for name in vars(kernels) if name.endswith("_kernel")]
        assert len(names) == 2
        for name in names:
            fn = getattr(kernels, name)
            for dtype, ones, begins, q_on_b, absent in half_of(forms, capability):
                settings = {"BEGINS": begins, "LAYERS": len(begins) - 1, "Q_ON_B": q_on_b, "DOUBLE": dtype == "fp64"}
                settings |= {"GRAD": "grad" not in absent, "GRAD_Q": "grad_q" not in absent}
                settings |= {"BLOCK_C": 128, "BLOCK_G": 16, "ACC": tl.float64 if dtype == "fp64" else tl.float32}
                types: dict[str, str] = {}
                constants: dict[str, Any] = {}
                for p in fn.params:
                    if p.is_constexpr or p.name in absent or p.name in ones:
                        types[p.name] = "constexpr"
                        constants[p.name] = settings.get(p.name, 1 if p.name in ones else None)
                    else:
                        types[p.name] = "i32" if p.name.isupper() else f"*{dtype}"
                by_position = {(fn.arg_names.index(k),): v for k, v in constants.items()}
                source = compiler.ASTSource(fn=fn, signature=types, constexprs=by_position)
                assert triton.compile(source, target=target).asm["cubin"]
