"""bias_act's Triton kernels without a GPU: run in Triton's interpreter, and compiled for sm_80 and sm_90.

The interpreter is chosen by TRITON_INTERPRET=1 before triton is imported, and must not leak into a process that
launches kernels on a GPU, so the tests of this file run in a process of their own.
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from tests.ops.gpu_kernels import LAYOUTS, half_of, run_in_interpreter, shapes_dtypes_layouts, signature, triton_compiler

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

if INTERPRETED:
    from mixsyn_fast.ops.triton_kernels import bias_act as launchers
    from tests.ops import test_bias_act_cuda as shared
    from tests.ops.test_bias_act_cuda import SHAPES, Target, check, make

    TARGET = Target("interpreted", "cpu", launchers.bias_act, launchers.bias_act_backward)

    @shapes_dtypes_layouts([shape for shape in SHAPES if shape[1] < 1000])
    def test_shapes_and_dtypes(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> None:
        check(TARGET, make(shape, dtype, "cpu", channels_last))

    @LAYOUTS
    def test_every_form(channels_last: bool) -> None:
        shared.test_every_form(TARGET, channels_last)

    @LAYOUTS
    def test_a_program_walks_over_several_tiles(channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(launchers, "_BLOCKS", 1)
        monkeypatch.setattr(launchers, "_STREAM_BLOCKS", 1)
        for dtype in (torch.float32, torch.float64):
            check(TARGET, make((2, 130, 25, 13), dtype, "cpu", channels_last))

    @pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 0, 3, 3), (2, 4, 0, 3)], ids=str)
    def test_empty(shape: tuple[int, ...]) -> None:
        shared.test_empty(TARGET, shape)

else:

    def test_in_the_interpreter() -> None:
        """Run this file's tests with TRITON_INTERPRET=1."""
        run_in_interpreter(__file__)

    @pytest.mark.parametrize("capability", [80, 90])
    def test_compiles(capability: int) -> None:
        """Both kernels become machine code, in the forms that differ: dtypes, layouts, absent arguments, sizes of one."""
        compiler, target = triton_compiler(capability)
        import triton
        import triton.language as tl

        from mixsyn_fast.ops.triton_kernels import bias_act as kernels

        forms = [  # dtype, arguments equal to one, absent arguments
            ("bf16", {"SC"}, set()),
            ("fp16", {"SP"}, {"noise", "strength", "part_sums"}),
            ("fp32", {"C", "N", "SC", "SP", "CHUNK", "PARTS"}, {"bias", "scale", "x", "part_scale"}),
            ("fp64", {"SC"}, set()),
        ]
        names = [name for name in vars(kernels) if name.endswith("_kernel")]
        assert len(names) == 2
        for name in names:
            fn = getattr(kernels, name)
            for dtype, ones, absent in half_of(forms, capability):
                absent = absent - ({"x"} if name == "_forward_kernel" else set())
                acc = "fp64" if dtype == "fp64" else "fp32"
                kinds = dict.fromkeys(("x", "y", "grad", "noise", "grad_x"), f"*{dtype}")
                types, constants = signature(fn, kinds, acc, absent, ones)
                settings = {"BIAS": "bias" not in absent, "SCALE": "scale" not in absent, "NOISE": "noise" not in absent}
                settings |= {"GRAD_SCALE": "x" not in absent, "SUMS": "part_sums" not in absent, "HIGH": 1.5, "LOW": 0.3}
                settings |= {"BLOCK_P": 16, "BLOCK_C": 128, "ACC": tl.float64 if acc == "fp64" else tl.float32}
                constants |= {p.name: settings[p.name] for p in fn.params if p.is_constexpr}
                by_position = {(fn.arg_names.index(k),): v for k, v in constants.items()}
                source = compiler.ASTSource(fn=fn, signature=types, constexprs=by_position)
                assert triton.compile(source, target=target).asm["cubin"]
