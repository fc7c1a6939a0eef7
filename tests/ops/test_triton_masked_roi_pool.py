"""masked_roi_pool's Triton kernels without a GPU: run in Triton's interpreter, and compiled for sm_80 and sm_90.

The interpreter is chosen by TRITON_INTERPRET=1 before triton is imported, and must not leak into a process that
launches kernels on a GPU, so the tests of this file run in a process of their own.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch

from tests.ops.gpu_kernels import (
    DTYPES_AND_LAYOUTS,
    half_of,
    run_in_interpreter,
    shapes_dtypes_layouts,
    signature,
    triton_compiler,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

if INTERPRETED:
    from mixsyn_fast.ops.triton_kernels import masked_roi_pool as launchers
    from tests.ops import test_masked_roi_pool_cuda as shared
    from tests.ops.test_masked_roi_pool_cuda import KINDS, LAYOUTS, Case, Target, check, make, run

    SHAPES = [(2, 16, 5, 7), (1, 3, 9, 11), (2, 8, 1, 1), (1, 1, 4, 3)]
    TARGET = Target("interpreted", "cpu", launchers.masked_roi_pool, launchers.masked_roi_pool_backward)

    @KINDS
    @shapes_dtypes_layouts(SHAPES)
    def test_dtypes_and_shapes(shape: Any, dtype: torch.dtype, maximum: bool, channels_last: bool) -> None:
        check(Case(shape, maximum=maximum, channels_last=channels_last), dtype, TARGET)

    @LAYOUTS
    @KINDS
    @pytest.mark.parametrize(("patch", "regions"), [(0, 151), (5, 3), (64, 1)], ids=["noise", "patches", "one label"])
    def test_regions(patch: int, regions: int, maximum: bool, channels_last: bool) -> None:
        """A region of more pixels than a piece holds, and more regions than pixels."""
        check(Case((2, 3, 13, 17), regions, maximum, channels_last, patch=patch), torch.float32, TARGET)

    @LAYOUTS
    @KINDS
    def test_many_blocks_and_channel_blocks(maximum: bool, channels_last: bool) -> None:
        check(Case((1, 130, 9, 10), 9, maximum, channels_last, patch=4), torch.float32, TARGET)

    def test_a_program_walks_over_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(launchers, "_BLOCKS", 1)
        for maximum in (True, False):
            for dtype in (torch.float32, torch.float64):
                check(Case((1, 5, 20, 15), 9, maximum, False, patch=7), dtype, TARGET)

    def test_strides_of_any_kind() -> None:
        """A slice is made dense."""
        case = Case((2, 6, 8, 5), channels_last=False)
        features, labels, grad = make(case, torch.float32, "cpu")
        spread = torch.zeros(2, 12, 8, 5)
        spread[:, ::2] = features
        check(case, torch.float32, TARGET, (spread[:, ::2], labels, grad))

    @DTYPES_AND_LAYOUTS
    @KINDS
    def test_nan_propagates(dtype: torch.dtype, maximum: bool, channels_last: bool) -> None:
        shared.test_nan_propagates(TARGET, dtype, maximum, channels_last)

    @DTYPES_AND_LAYOUTS
    def test_ties_go_to_the_first_position(dtype: torch.dtype, channels_last: bool) -> None:
        shared.test_ties_go_to_the_first_position(TARGET, dtype, channels_last)

    @LAYOUTS
    @KINDS
    @pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 0, 4, 4), (2, 8, 0, 4)], ids=str)
    def test_empty(shape: Any, maximum: bool, channels_last: bool) -> None:
        shared.test_empty(TARGET, shape, maximum, channels_last)

    def test_gradient_of_absent_regions_and_of_no_region() -> None:
        shared.test_gradient_of_absent_regions_and_of_no_region(TARGET)

    @KINDS
    def test_repeatable(maximum: bool) -> None:
        case = Case((2, 16, 9, 10), 9, maximum, patch=4)
        data = make(case, torch.float32, "cpu")
        for value, other in zip(run(case, data, TARGET), run(case, data, TARGET), strict=True):
            assert torch.equal(value, other)

    @pytest.mark.parametrize("value", [-2, 3, 2**31 - 1])
    @pytest.mark.parametrize("maximum", [True, False], ids=["max", "mean"])
    def test_a_label_out_of_range(maximum: bool, value: int) -> None:
        """On a GPU the same is an assertion of the device."""
        labels = torch.zeros(2, 4, 4, dtype=torch.int32)
        labels[1, 3, 3] = value
        with pytest.raises(RuntimeError, match=r"masked_roi_pool: labels: expected values in \[0, 3\) or -1"):
            launchers.masked_roi_pool(torch.zeros(2, 3, 4, 4), labels, 3, maximum)


else:

    def test_in_the_interpreter() -> None:
        """Run this file's tests with TRITON_INTERPRET=1."""
        run_in_interpreter(__file__)

    def kinds_of(dtype: str) -> dict[str, str]:
        """Types of the arguments that are no pointers to the accumulation type."""
        kinds = {"labels": "*i32", "position": "*i32", "table": "*i64"}
        kinds |= dict.fromkeys(("order", "begins", "ends", "piece_starts"), "*i64")
        kinds |= dict.fromkeys(("x", "grad", "grad_x", "pooled"), f"*{dtype}")
        return kinds

    @pytest.mark.parametrize("capability", [80, 90])
    def test_compiles(capability: int) -> None:
        """Every kernel becomes machine code, in the forms that differ: dtypes, layouts, sizes of one."""
        compiler, target = triton_compiler(capability)
        import triton
        import triton.language as tl

        from mixsyn_fast.ops.triton_kernels import masked_roi_pool as kernels

        everything_one = {"C", "N", "K", "SC", "SP", "CHUNK", "PARTS", "TOTAL"}
        forms = [  # dtype, accumulation, arguments equal to one, maximum
            ("bf16", "fp32", {"SC"}, True),
            ("fp16", "fp32", {"SP"}, False),
            ("fp32", "fp32", everything_one, True),
            ("fp64", "fp64", {"SC"}, False),
        ]
        names = [name for name in vars(kernels) if name.endswith("_kernel")]
        assert len(names) == 6
        for name in names:
            fn = getattr(kernels, name)
            for dtype, acc, ones, maximum in half_of(forms, capability):
                if name == "_position_kernel" and dtype != "fp64":
                    continue
                absent = ({"area"} if maximum else {"position"}) if name == "_backward_kernel" else set()
                types, constants = signature(fn, kinds_of(dtype), acc, absent, ones)
                settings = {"MAXIMUM": maximum, "DOUBLE": dtype == "fp64", "LOWEST": kernels._LOWEST}
                settings |= {"BLOCK": 1024, "BLOCK_P": 32, "BLOCK_C": 64, "BLOCK_K": 16}
                settings["ACC"] = tl.float64 if acc == "fp64" else tl.float32
                constants |= {p.name: settings[p.name] for p in fn.params if p.is_constexpr}
                by_position = {(fn.arg_names.index(k),): v for k, v in constants.items()}
                source = compiler.ASTSource(fn=fn, signature=types, constexprs=by_position)
                assert triton.compile(source, target=target).asm["cubin"]
