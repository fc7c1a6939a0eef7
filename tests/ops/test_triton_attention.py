"""The Triton kernels of both attention ops without a GPU: run in Triton's interpreter, and compiled for sm_80 and sm_90.

The interpreter is chosen by TRITON_INTERPRET=1 before triton is imported, and must not leak into a process that
launches kernels on a GPU, so the tests of this file run in a process of their own.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

import pytest
import torch

from tests.ops.gpu_kernels import LAYOUTS, Target, half_of, run_in_interpreter, shapes_dtypes_layouts, triton_compiler

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

if INTERPRETED:
    from mixsyn_fast.ops.triton_kernels import attention
    from mixsyn_fast.ops.triton_kernels import channel_attention_spread as spread_launchers
    from mixsyn_fast.ops.triton_kernels import spatial_attention_pool as pool_launchers
    from tests.ops import test_channel_attention_spread_cuda as spread
    from tests.ops import test_spatial_attention_pool_cuda as pool

    POOL = Target(
        "interpreted", "cpu", pool_launchers.spatial_attention_pool, pool_launchers.spatial_attention_pool_backward
    )
    SPREAD = Target(
        "interpreted", "cpu", spread_launchers.channel_attention_spread, spread_launchers.channel_attention_spread_backward
    )
    SHAPES = [(2, 16, 8, 6, 10, 8), (1, 13, 5, 9, 11, 3), (2, 4, 4, 1, 1, 2), (1, 20, 0, 8, 8, 16)]

    @shapes_dtypes_layouts(SHAPES)
    def test_dtypes_and_shapes(shape: Any, dtype: torch.dtype, channels_last: bool) -> None:
        pool.check(pool.Case(*shape, channels_last=channels_last), dtype, POOL)
        spread.check(spread.Case(*shape, channels_last and shape[2] > 0), dtype, SPREAD)

    @pytest.mark.parametrize(("mask", "channels_last"), [("some", True), ("image", False)])
    def test_mask_and_gradient_of_the_maps(mask: str, channels_last: bool) -> None:
        pool.check(pool.Case(2, 12, 8, 5, 8, 5, mask, channels_last, grad_maps=True), torch.float32, POOL)
        pool.check(pool.Case(2, 12, 8, 5, 8, 5, mask, channels_last, grad_maps=True), torch.bfloat16, POOL)

    @pytest.mark.parametrize("maps", [17, 64])
    def test_many_maps(maps: int) -> None:
        pool.check(pool.Case(1, 12, 5, 3, 13, maps, "some", grad_maps=True), torch.float32, POOL)
        spread.check(spread.Case(1, 12, 5, 3, 13, maps), torch.float32, SPREAD)

    @pytest.mark.parametrize(
        ("channels", "channels_last"), [((130, 20), False), ((20, 70), True), ((130, 70), True), ((130, 70), False)], ids=str
    )
    def test_panels(channels: tuple[int, int], channels_last: bool) -> None:
        """More channels than a block holds, in one map or in both; more positions than a tile holds."""
        pool.check(pool.Case(1, *channels, 7, 6, 5, "some", channels_last), torch.float32, POOL)
        spread.check(spread.Case(1, *channels, 7, 6, 5, channels_last), torch.float32, SPREAD)

    def test_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
        """More tiles than one program walks: parts are merged."""
        monkeypatch.setattr(attention, "_LEAST_TILES", 2)
        pool.check(pool.Case(1, 6, 4, 12, 11, 4, "some", grad_maps=True), torch.float32, POOL)
        spread.check(spread.Case(1, 6, 4, 12, 11, 4), torch.float32, SPREAD)

    @LAYOUTS
    def test_maximum_that_grows_and_shrinks(channels_last: bool) -> None:
        pool.test_maximum_that_grows_and_shrinks(POOL, channels_last)

    def test_large_logits() -> None:
        spread.test_large_logits(SPREAD)

    @LAYOUTS
    def test_maps_of_attention(channels_last: bool) -> None:
        spread.test_maps_of_attention(SPREAD, channels_last)

    @pytest.mark.parametrize("maps", [4, 18])
    def test_only_what_is_needed(maps: int) -> None:
        pool.test_only_what_is_needed(POOL, (1, 8, 4, 5, 8, maps), [1, 2, 4, 8, 6, 11])
        spread.test_only_what_is_needed(SPREAD, (1, 8, 4, 5, 8, maps), [1, 2, 4, 5])

    def test_no_maps_unless_asked() -> None:
        pool.test_no_maps_unless_asked(POOL)

    @pytest.mark.parametrize("shape", [(0, 4, 3, 5, 5, 2), (2, 4, 3, 0, 5, 2), (2, 0, 0, 4, 4, 2)], ids=str)
    def test_empty(shape: Any) -> None:
        pool.test_empty(POOL, shape)
        if shape[2] > 0:
            spread.test_empty(SPREAD, shape)

    def test_nan_reaches_the_results() -> None:
        pool.test_nan_reaches_the_results(POOL)
        spread.test_nan_reaches_the_results(SPREAD)

    def test_through_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
        """The registered ops, with gradients, equal the references."""
        import mixsyn_fast

        pool_op = sys.modules["mixsyn_fast.ops.spatial_attention_pool"]
        spread_op = sys.modules["mixsyn_fast.ops.channel_attention_spread"]
        data = pool.make(pool.Case(2, 12, 5, 6, 7, 4, "some"), torch.float64, "cpu")
        found = []
        for backend in ("reference", "triton"):
            leaves = [data[name].clone().requires_grad_() for name in pool.GRADIENTS]
            with mixsyn_fast.use_backend(backend):
                values, mean, maps = pool_op.spatial_attention_pool(*leaves, mask=data["mask"], return_maps=True)
                out = spread_op.channel_attention_spread(values, leaves[1], leaves[3])
                (out.square().sum() + mean.square().sum() + maps.square().sum()).backward()
            found.append([out.detach(), *(leaf.grad for leaf in leaves)])
        for got, exact in zip(found[1], found[0], strict=True):
            torch.testing.assert_close(got, exact, rtol=1e-10, atol=1e-12)

else:

    def test_in_the_interpreter() -> None:
        """Run this file's tests with TRITON_INTERPRET=1."""
        run_in_interpreter(__file__)

    # of a kernel: tensors of the maps' type, of bytes, and (by default) of the sums' type
    MAPS = ("features", "condition", "grad_features", "grad_condition", "grad_maps", "maps", "out", "grad")

    @pytest.mark.parametrize("capability", [80, 90])
    @pytest.mark.parametrize("op", ["spatial_attention_pool", "channel_attention_spread", "attention"])
    def test_compiles(op: str, capability: int) -> None:
        """Every kernel becomes machine code, in the forms that differ: dtypes, layouts, one block or panels."""
        compiler, target = triton_compiler(capability)
        import triton
        import triton.language as tl

        from mixsyn_fast.ops.triton_kernels.attention import LAUNCH

        kernels = importlib.import_module(f"mixsyn_fast.ops.triton_kernels.{op}")
        forms = [  # dtype, accumulation, arguments equal to one, BLOCK_K, BLOCK_N, ONE, mask and gradient of the maps
            ("bf16", "fp32", {"FC", "CC"}, 16, 128, True, False),
            ("fp32", "fp32", {"FP", "CP"}, 16, 128, True, True),
            ("fp16", "fp32", {"FP", "CP", "PARTS"}, 64, 128, False, True),
            ("fp64", "fp64", {"FC", "CC"}, 16, 64, True, True),
            ("fp64", "fp64", {"FP", "CP"}, 64, 64, False, False),
        ]
        names = [name for name in vars(kernels) if name.endswith("_kernel")]
        assert names
        for name in names:
            fn = getattr(kernels, name)
            for dtype, acc, ones, block_k, block_n, one, more in half_of(forms, capability):
                absent = set() if more else {"mask", "grad_maps", "maps_offset", "partial_offset"}
                settings: dict[str, Any] = {
                    "ACC": tl.float64 if acc == "fp64" else tl.float32, "PRECISION": "ieee" if acc == "fp64" else "tf32x3",
                    "BLOCK_P": 32, "BLOCK_K": block_k, "BLOCK_N": block_n, "BLOCK_M": 64, "BLOCK_R": 32, "BLOCK_C": 64,
                    "MASK": more, "MAPS": more, "SUM": more, "ONE": one, "WRITE": True, "WRITE_F": True, "WRITE_C": True,
                    "SUM_F": True, "SUM_C": True, "SUM_V": True, "SUM_W": True,
                }  # fmt: skip
                types, constants = {}, {}
                for p in fn.params:
                    if p.is_constexpr:
                        types[p.name], constants[p.name] = "constexpr", settings[p.name]
                    elif p.name in absent or p.name in ones:
                        types[p.name], constants[p.name] = "constexpr", None if p.name in absent else 1
                    elif p.name.isupper():
                        types[p.name] = "i32"
                    else:
                        types[p.name] = "*u8" if p.name == "mask" else f"*{dtype if p.name in MAPS else acc}"
                by_position = {(fn.arg_names.index(k),): v for k, v in constants.items()}
                source = compiler.ASTSource(fn=fn, signature=types, constexprs=by_position)
                compiled = triton.compile(source, target=target, options=LAUNCH)
                assert compiled.asm["cubin"]
                assert compiled.metadata.shared <= 96 * 1024, f"{name} {dtype}: {compiled.metadata.shared} bytes shared"
