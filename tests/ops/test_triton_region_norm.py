"""region_norm's Triton kernels without a GPU: run in Triton's interpreter, and compiled for sm_80 and sm_90.

The interpreter is chosen by TRITON_INTERPRET=1 before triton is imported, and must not leak into a process that
launches kernels on a GPU, so the tests of this file run in a process of their own.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch

from tests.ops.gpu_kernels import half_of, run_in_interpreter, shapes_dtypes_layouts, signature, triton_compiler

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

if INTERPRETED:
    from mixsyn_fast.ops.triton_kernels import region_norm as launchers
    from tests.ops.test_region_norm_cuda import (
        BATCH,
        GIVEN,
        GROUP,
        INSTANCE,
        NONE,
        Case,
        Target,
        check,
        check_error,
        expected,
        make,
        run,
    )

    NAMES = ("region_norm", "region_norm_stats", "region_norm_backward_reduce", "region_norm_backward_input")
    TARGET = Target("interpreted", "cpu", *(getattr(launchers, name) for name in NAMES))
    SHAPES = [(2, 16, 5, 7), (1, 3, 9, 11), (2, 8, 1, 1), (1, 1, 4, 3)]
    LAYOUTS = pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])

    @shapes_dtypes_layouts(SHAPES)
    def test_dtypes_and_shapes(shape: Any, dtype: torch.dtype, channels_last: bool) -> None:
        check(Case(shape, BATCH, slope=0.2, channels_last=channels_last), dtype, TARGET)

    @pytest.mark.parametrize("norm", [NONE, GIVEN, INSTANCE, BATCH], ids=["none", "given", "instance", "batch"])
    @pytest.mark.parametrize("params", ["none", "table", "maps"])
    @pytest.mark.parametrize("noise", [False, True], ids=["", "noise"])
    def test_every_form(noise: bool, params: str, norm: int) -> None:
        channels_last = noise != (params == "maps")  # each of norm, params and noise in both layouts
        slope = 0.2 if norm % 2 else None
        case = Case((2, 6, 7, 5), norm, params, noise=noise, slope=slope, channels_last=channels_last)
        check(case, torch.float32, TARGET)

    @pytest.mark.parametrize("params", ["none", "table", "row", "rows", "maps"])
    def test_groups_rows_and_silu(params: str) -> None:
        channels_last = params in ("table", "row")
        case = Case((2, 6, 7, 5), GROUP, params, silu=True, channels_last=channels_last, num_groups=2)
        check(case, torch.float32, TARGET)
        if params in ("row", "rows"):
            for norm in (NONE, BATCH):
                check(case._replace(norm=norm, num_groups=0, silu=False, slope=0.2), torch.float64, TARGET)

    @LAYOUTS
    def test_float32_table_of_half_maps(channels_last: bool) -> None:
        check(Case((2, 6, 7, 5), acc_params=True, channels_last=channels_last), torch.float16, TARGET)

    @pytest.mark.parametrize("rows", [1, 3, 400])
    def test_rows(rows: int) -> None:
        """A row of more pixels than a piece holds, and more rows than pixels."""
        check(Case((2, 3, 13, 17), INSTANCE, rows=rows, slope=0.2), torch.float32, TARGET)

    def test_many_blocks_and_channel_blocks() -> None:
        check(Case((1, 130, 17, 13), BATCH, rows=9, slope=0.2), torch.float32, TARGET)

    @pytest.mark.parametrize(("params", "channels_last"), [("table", True), ("maps", False)])
    def test_a_program_walks_over_several_tiles(params: str, channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(launchers, "_BLOCKS", 1)
        monkeypatch.setattr(launchers, "_STREAM_BLOCKS", 1)
        for dtype in (torch.float32, torch.float64):
            case = Case((2, 5, 25, 20), INSTANCE, params, noise=True, slope=0.2, channels_last=channels_last)
            check(case, dtype, TARGET)

    def test_strides_of_any_kind() -> None:
        """A slice is made dense; a gradient in another layout is turned."""
        case = Case((2, 6, 8, 5))
        data = make(case, torch.float64, "cpu")
        data["x"] = torch.randn(2, 12, 8, 5, dtype=torch.float64)[:, ::2]
        data["grad"] = data["grad"].contiguous()
        reference = expected(case, data, torch.float64)
        got = run(case, data, TARGET, (reference["given_mean"], reference["given_variance"]))
        for name in ("y", "grad_x", "grad_table"):
            check_error(name, got[name], reference[name], reference[name])

    @pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 0, 4, 4), (2, 8, 0, 4)], ids=str)
    @pytest.mark.parametrize("norm", [NONE, INSTANCE, BATCH], ids=["none", "instance", "batch"])
    def test_empty(norm: int, shape: Any) -> None:
        case = Case(shape, norm, noise=True)
        got = run(case, make(case, torch.float32, "cpu"), TARGET, (torch.zeros(0), torch.zeros(0)))
        assert got["y"].shape == got["grad_x"].shape == shape
        assert got["grad_table"].shape == (7, 2 * shape[1]) and not got["grad_table"].any()

else:

    def test_in_the_interpreter() -> None:
        """Run this file's tests with TRITON_INTERPRET=1."""
        run_in_interpreter(__file__)

    def kinds_of(dtype: str) -> dict[str, str]:
        """Types of the arguments that are no pointers to the accumulation type."""
        kinds = {"index": "*i32"}
        kinds |= dict.fromkeys(("order", "rows", "begins", "ends", "piece_starts"), "*i64")
        kinds |= dict.fromkeys(("x", "y", "grad", "table", "scale", "shift", "noise", "noise_scale"), f"*{dtype}")
        kinds |= dict.fromkeys(("grad_x", "grad_scale", "grad_shift"), f"*{dtype}")
        return kinds

    @pytest.mark.parametrize("capability", [80, 90])
    def test_compiles(capability: int) -> None:
        """Every kernel becomes machine code, in the forms that differ: dtypes, layouts, sizes of one, modes."""
        compiler, target = triton_compiler(capability)
        import triton
        import triton.language as tl

        from mixsyn_fast.ops.triton_kernels import region_norm as kernels

        everything_one = {"C", "N", "SC", "SP", "CHUNK", "PARTS", "GROUP_PARTS"}
        forms = [  # dtype, accumulation, arguments equal to one, MODE, NORM, NOISE, SLOPE
            ("bf16", "fp32", {"SC"}, 1, True, True, 0.2),
            ("fp16", "fp32", {"SP"}, 2, True, False, None),
            ("fp32", "fp32", everything_one, 0, False, False, 0.2),
            ("fp64", "fp64", {"SC"}, 1, True, True, 0.2),
            ("bf16", "fp32", {"SP"}, 3, True, False, None),  # with SiLU
            ("fp32", "fp32", {"SC"}, 4, False, False, None),
        ]
        names = [name for name in vars(kernels) if name.endswith("_kernel")]
        assert len(names) == 7
        for name in names:
            fn = getattr(kernels, name)
            for dtype, acc, ones, mode, norm, noise, slope in half_of(forms, capability):
                absent = {"index"} if mode != 1 else set()
                absent |= {"scale", "shift"} if mode != 2 else set()
                absent |= {"table"} if mode in (0, 2) and name != "_table_kernel" else set()
                absent |= {"noise", "noise_scale"} if not noise else set()
                absent |= {"mean", "variance"} if not norm else set()
                types, constants = signature(fn, kinds_of(dtype), acc, absent, ones)
                settings = {"MODE": mode, "NORM": norm, "NOISE": noise, "SLOPE": slope, "SILU": mode > 2, "EPS": 1e-5}
                settings |= {"SUMS": norm, "MAPS": mode == 2, "BLOCK_P": 16, "BLOCK_C": 128, "BLOCK_K": 16}
                settings["ACC"] = tl.float64 if acc == "fp64" else tl.float32
                constants |= {p.name: settings[p.name] for p in fn.params if p.is_constexpr}
                by_position = {(fn.arg_names.index(k),): v for k, v in constants.items()}
                source = compiler.ASTSource(fn=fn, signature=types, constexprs=by_position)
                assert triton.compile(source, target=target).asm["cubin"]
