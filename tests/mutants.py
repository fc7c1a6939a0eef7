"""Break one place after the other and see a test of `make test` fail: `make mutants [ARGS='NAME ...']`.

Every mutation replaces a text that stands exactly once in the files it names, in a copy of the repository; what is compiled
is compiled anew (it must compile), and the tests named must fail, by assertion. Before, they must pass on the copy as it is.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "mutants"
TREE = WORK / "tree"


class Mutation(NamedTuple):
    """A place to break.

    Attributes:
        name: what is broken.
        files: globs; one of the files holds `old`, once.
        old: text.
        new: what stands there instead.
        tests: arguments of pytest, which must fail then.
    """

    name: str
    files: str
    old: str
    new: str
    tests: str


def _op(stem: str, *rows: tuple[str, str, str, str], files: str, tests: str) -> list[Mutation]:
    """Mutations (what, old, new, -k expression) of one kernel."""
    place = files.format(stem)
    return [Mutation(f"{stem}: {what}", place, old, new, f"{tests.format(stem)} -k '{k}'") for what, old, new, k in rows]


def cpu(stem: str, *rows: tuple[str, str, str, str]) -> list[Mutation]:
    """CPU kernels."""
    return _op(f"{stem}", *rows, files="csrc/cpu/{0}.* csrc/{0}_cpu.cpp", tests="tests/ops/test_{0}.py")


def cuda(stem: str, *rows: tuple[str, str, str, str]) -> list[Mutation]:
    """CUDA kernels, in the emulation."""
    return [
        m._replace(name=f"CUDA {m.name}")
        for m in _op(stem, *rows, files="csrc/kernels/*.cu csrc/kernels/*.cuh", tests="tests/ops/test_{0}_cuda.py")
    ]


def triton(stem: str, test: str, *rows: tuple[str, str, str]) -> list[Mutation]:
    """Triton kernels, in the interpreter: mutations (what, old, new)."""
    tests = f"tests/ops/test_triton_{test}.py -k in_the_interpreter"
    return [
        Mutation(f"Triton {stem}: {what}", f"mixsyn_fast/ops/triton_kernels/{stem}.py", old, new, tests)
        for what, old, new in rows
    ]


ON_ARM = "tests/ops/test_arm.py -k follow_the_reference"
LAYERS = "mixsyn_fast/layers/*.py"
MUTATIONS = [
    *cpu(
        "region_norm",
        (
            "variance between blocks",
            "squares_before + (m2[v] + delta * delta * cross)",
            "squares_before + m2[v]",
            "kernels_follow",
        ),
        (
            "shift, channels_last",
            "store_row<STREAM>(y + c, activated<SILU, Vec<A>>(xhat * gamma + beta, slope));",
            "store_row<STREAM>(y + c, activated<SILU, Vec<A>>(xhat * gamma - beta, slope));",
            "kernels_follow",
        ),
        (
            "shift, contiguous",
            "activated<SILU, Vec<A>>(xhat * gamma + beta, slope), n);",
            "activated<SILU, Vec<A>>(xhat * gamma - beta, slope), n);",
            "kernels_follow",
        ),
        (
            "variance between channels of a group",
            "squares += m2[c + i] + count * delta * delta;",
            "squares += m2[c + i];",
            "groups_affine",
        ),
        (
            "planes of one row",
            "store(to + p, STATS ? g * factor - (deviation * by_deviation + less) : g * factor);",
            "store(to + p, STATS ? g * factor - (deviation * by_deviation - less) : g * factor);",
            "groups_affine",
        ),
        (
            "a row of every image",
            "p.image_row = !in.index && p.rows > 1;",
            "p.image_row = 0;",
            "bodies and rows",
        ),
        (
            "sum of gamma times gradient",
            "total_gx[v] += MAPS ? run_gx[v] : gamma[v] * run_gx[v];",
            "total_gx[v] += run_gx[v];",
            "kernels_follow",
        ),
        (
            "gradient through the variance",
            "m) - xhat * load_part<FULL>(a.mean_gx",
            "m) + xhat * load_part<FULL>(a.mean_gx",
            "kernels_follow",
        ),
    ),
    Mutation(
        "gradient of SiLU",
        "csrc/cpu/silu.h",
        "return share * (v - v * share) + share;",
        "return share * (v - v * share);",
        "tests/ops/test_region_norm.py -k groups_affine",
    ),
    Mutation(
        "SiLU far below zero",
        "csrc/cpu/silu.h",
        "  v = silu_low(v);\n",
        "",
        "tests/ops/test_region_norm.py -k any_number",
    ),
    Mutation(
        "groups of a modulated norm",
        LAYERS,
        '"num_groups": norm.num_groups',
        '"num_groups": 1',
        "tests/layers/test_stacks.py -k every_norm",
    ),
    *cpu(
        "masked_roi_pool",
        (
            "sum over runs",
            "store(values + v * L, load(values + v * L) + sum[v]);",
            "store(values + v * L, sum[v]);",
            "against_a_loop or a_long_sum",
        ),
        (
            "positions of a block of several regions",
            "roi_take<A, MAY_BE_NAN>(best, at, block[q], roi_splat<A>(p + q));",
            "roi_take<A, MAY_BE_NAN>(best, at, block[q], roi_splat<A>(p));",
            "kernels_follow or ties or border",
        ),
        (
            "ties between the halves of a block of one region",
            "roi_take<A, false>(best, at, other, other_at);",
            "roi_take<A, false>(other, other_at, best, at), best = other, at = other_at;",
            "ties or border",
        ),
        (
            "NaN in a run",
            "if (!MAY_BE_NAN && any_lane(nan)) return false;",
            "",
            "nan",
        ),
        (
            "NaN in a block",
            "} else if (any_lane(nan)) {",
            "} else if (false) {",
            "nan",
        ),
    ),
    *cpu(
        "spatial_attention_pool",
        (
            "rescaling of the sum, contiguous",
            "sum[k] = sum[k] * factor + lane_sum<A>(total);",
            "sum[k] = sum[k] + lane_sum<A>(total);",
            "kernels_follow",
        ),
        (
            "softmax's gradient, channels_last",
            "load(row) * (load(row + kp) - load(offset + k))",
            "load(row) * load(row + kp)",
            "kernels_follow",
        ),
        (
            "softmax's gradient, contiguous",
            "store(grad + p, e * (g - offset));",
            "store(grad + p, e * g);",
            "kernels_follow",
        ),
    ),
    *cpu(
        "channel_attention_spread",
        (
            "softmax's gradient",
            "store(at, load(maps + k * stride + p) * (load(at) - sum));",
            "store(at, load(maps + k * stride + p) * load(at));",
            "kernels_follow",
        ),
        (
            "maximum",
            "high[v] = l > high[v] ? l : high[v];",
            "high[v] = l < high[v] ? l : high[v];",
            "huge_logits or small_maps",
        ),
    ),
    *cpu(
        "latent_blend",
        ("blend on a", "a + q * (b - a) : b + q * (a - b), n);", "a + q * (b - a) : b + q * (b - a), n);", "kernels_follow"),
        ("first of equal logits", "(key <= best) | (best != best)", "(key < best) | (best != best)", "equal_logits"),
        ("sigmoid's gradient", "= q * rest * (through + g_q);", "= q * (through + g_q);", "kernels_follow"),
    ),
    *cpu(
        "bias_act",
        (
            "noise of each image, channels_last",
            "a.noise + image * (a.noise_stride - a.pixels) : nullptr;",
            "a.noise - image * a.pixels : nullptr;",
            "kernels_follow",
        ),
        ("slope", "return u * (u >= 0 ? high : low);", "return u * high;", "kernels_follow"),
        (
            "sums of a part's last pixels",
            "for (; p < p1; ++p) bias_act_backward_rows",
            "for (; p + 1 < p1; ++p) bias_act_backward_rows",
            "kernels_follow",
        ),
        (
            "sum over channels, contiguous",
            "first ? h : load_part<FULL>(sums + i, m) + h, m);",
            "h, m);",
            "kernels_follow",
        ),
        ("merging of parts", "total[static_cast<size_t>(c)] += ", "total[static_cast<size_t>(c)] = ", "kernels_follow"),
    ),
    *cpu(
        "label_patterns",
        (
            "corners of a 5x5 pattern",
            "pair(bottom[x], bottom[x + 2])};",
            "pair(bottom[x], bottom[x])};",
            "brute_force or stripes",
        ),
        ("rows of one image", "std::fill(slots_.begin(), slots_.end(), -1);", "", "brute_force or stripes"),
    ),
    *cuda(
        "region_norm",
        ("variance between tiles", "m2[v] += squares + delta * delta * weight;", "m2[v] += squares;", "emulated and shapes"),
        (
            "variance between blocks",
            "squares += __ldg(partial_m2 + at) + size(k) * delta * delta;",
            "squares += __ldg(partial_m2 + at);",
            "emulated and shapes",
        ),
        (
            "variance between channels of a group",
            "squares += __ldg(m2 + first + k) + pixels * delta * delta;",
            "squares += __ldg(m2 + first + k);",
            "emulated and groups",
        ),
        (
            "gamma of sums over images",
            "all_g += gamma * __ldg(own_g + image + k), all_gx",
            "all_g += __ldg(own_g + image + k), all_gx",
            "emulated and groups",
        ),
        (
            "sum of gradient times value",
            "sum_gx[v] += present ? ghat * x[u][v] : A(0);",
            "sum_gx[v] += present ? ghat : A(0);",
            "emulated and shapes",
        ),
        (
            "runs that began in an earlier part",
            "const bool starts = run_begin > begin ||",
            "const bool starts = run_begin >= begin ||",
            "emulated and (boundaries or rows)",
        ),
    ),
    *cuda(
        "latent_blend",
        ("first NaN", "if (index < 0 || (better && value == value))", "if (index < 0 || better)", "emulated and nan"),
        (
            "sigmoid's gradient",
            "const A dlogit = q * (A(1) - q) * dq;",
            "const A dlogit = q * dq;",
            "emulated and every_group",
        ),
    ),
    *cuda(
        "bias_act",
        (
            "pixels beyond the last",
            "h[u][v] = present ? h[u][v] * (value",
            "h[u][v] = true ? h[u][v] * (value",
            "emulated and shapes",
        ),
        (
            "channels beyond the last",
            "rows[u] += v < at.valid ? h[u][v] : A(0);",
            "rows[u] += h[u][v];",
            "emulated and shapes",
        ),
        (
            "sums over the groups of a block",
            "tiling.groups, tiling.lanes, in_block);",
            "1, tiling.lanes, in_block);",
            "emulated and shapes",
        ),
    ),
    *cuda(
        "masked_roi_pool",
        (
            "first of equal values",
            "if (!(x[v] <= best[v]) && best[v] == best[v]) best[v] = x[v], where[v] = pixel;",
            "if (!(x[v] < best[v]) && best[v] == best[v]) best[v] = x[v], where[v] = pixel;",
            "emulated and ties",
        ),
        (
            "sort of a piece",
            "if ((a > b) == ((low & size) == 0)) keys[low] = b, keys[high] = a;",
            "if (a > b) keys[low] = b, keys[high] = a;",
            "emulated and (bitwise or regions) and mean",
        ),
        ("area of a region", "counts[label] += low - i;", "counts[label] += low - i - 1;", "emulated and shapes and mean"),
    ),
    *cuda(
        "label_patterns",
        (
            "taps beyond the image",
            "x + dx >= 0 && x + dx < grid.width;\n      const unsigned code = inside ?",
            "x + dx >= 0 && x + dx <= grid.width;\n      const unsigned code = inside ?",
            "emulated and matches",
        ),
        ("codes of edges", "if (edges && __ldg(edges + p)) code += num_regions + 2;", "", "emulated and matches and edges"),
    ),
    *cuda(
        "spatial_attention_pool",
        (
            "rescaling of the sum",
            "total[half] = total[half] * rescale[half] + sum;",
            "total[half] = total[half] + sum;",
            "emulated and (many_channels or maximum_that)",
        ),
        (
            "masked positions in backward",
            "const A map = used ? exp(*to_map - lse) : A(0);",
            "const A map = exp(*to_map - lse);",
            "emulated and mask",
        ),
    ),
    *cuda(
        "channel_attention_spread",
        (
            "maximum of a softmax",
            "? exp(d[kt][i] - most[i % 2]) : A(0);",
            "? exp(d[kt][i]) : A(0);",
            "emulated and large_logits",
        ),
    ),
    *triton(
        "region_norm",
        "region_norm",
        ("variance between tiles", "m2 += tile_m2 + delta * delta * (n * share)", "m2 += tile_m2"),
        (
            "variance between channels of a group",
            "(_shared(a, m2) + pixels * (means - together).square())",
            "_shared(a, m2)",
        ),
    ),
    *triton(
        "masked_roi_pool",
        "masked_roi_pool",
        ("first of equal values", "(key << 32) | (0xFFFFFFFF - pixel)[:, None]", "(key << 32) | pixel[:, None]"),
    ),
    Mutation(
        "bias_act: gradient that is differentiated again",
        "mixsyn_fast/ops/bias_act.py",
        "None if x is None else (h * x.to(acc)).sum((2, 3)),",
        "None if x is None else (h.detach() * x.to(acc)).sum((2, 3)),",
        "tests/ops/test_bias_act.py -k 'double_backward or penalties'",
    ),
    *triton("bias_act", "bias_act", ("sum of gradient times value", "sum_hx += tl.sum(h * ", "sum_hx = tl.sum(h * ")),
    *triton(
        "latent_blend",
        "latent_blend",
        (
            "first of equal logits",
            "first = tl.min(tl.where(order == top[:, None], i[None, :], BLOCK_G), 1)",
            "first = tl.max(tl.where(order == top[:, None], i[None, :], -1), 1)",
        ),
    ),
    *triton(
        "channel_attention_spread",
        "attention",
        ("softmax's gradient", "maps * (of_maps - dot[None, :]), 0.0)", "maps * of_maps, 0.0)"),
    ),
    *triton(
        "spatial_attention_pool",
        "attention",
        ("rescaling of the sum", "total = total * rescale + tl.sum(weight, 1)", "total = total + tl.sum(weight, 1)"),
    ),
    Mutation(
        "Arm: bfloat16 read",
        "csrc/cpu/isa/neon.h",
        "vld1_u16(static_cast<const uint16_t*>(from)), 16)",
        "vld1_u16(static_cast<const uint16_t*>(from)), 15)",
        ON_ARM,
    ),
    Mutation(
        "Arm: bfloat16 and positions written",
        "csrc/cpu/isa/neon.h",
        "vmovn_u32(bits_of<uint32x4_t>(words))",
        "vshrn_n_u32(bits_of<uint32x4_t>(words), 1)",
        ON_ARM,
    ),
    Mutation(
        "Arm: float16 written",
        "csrc/cpu/isa/neon.h",
        "vcvt_f16_f32(bits_of<float32x4_t>(v))",
        "vcvt_f16_f32(vaddq_f32(bits_of<float32x4_t>(v), vdupq_n_f32(0.01f)))",
        ON_ARM,
    ),
    Mutation(
        "what stands in for torch: transpose",
        "tests/emulation/torch_alone/torch/csrc/stable/ops.h",
        "  std::swap(strides.at(static_cast<size_t>(a)), strides.at(static_cast<size_t>(b)));\n",
        "",
        "tests/ops/test_stand_in.py -k masked_roi_pool",
    ),
    Mutation(
        "algebra: centre tap",
        LAYERS,
        "centre = rows.view(-1, count, rows.shape[1])[:, count // 2]",
        "centre = rows.view(-1, count, rows.shape[1])[:, count // 2 - 1]",
        "tests/layers/test_norms.py -k kept_for_serving",
    ),
    Mutation(
        "algebra: order of a kernel's taps",
        LAYERS,
        "rows = weight.permute(0, 2, 3, 1).reshape(out * height * width, size)",
        "rows = weight.permute(0, 3, 2, 1).reshape(out * height * width, size)",
        "tests/layers",
    ),
    Mutation(
        "algebra: gradient of sums of rows",
        LAYERS,
        "counts.cumsum(0) - counts",
        "counts.cumsum(0) - 1",
        "tests/layers/test_algebra.py",
    ),
    Mutation(
        "spectral norm: gradient of sigma",
        "models/blocks.py",
        "torch.addr(grad / sigma, u * -share, v)",
        "torch.addr(grad / sigma, u * share, v)",
        "tests/models/test_generators.py -k spectral",
    ),
    Mutation(
        "algebra: gradient of taps",
        LAYERS,
        "result = matrix.reshape(height, width, out, inner).permute(2, 3, 0, 1)",
        "result = matrix.reshape(height, width, out, inner).permute(2, 3, 1, 0)",
        "tests/layers/test_algebra.py",
    ),
    Mutation(
        "SPADE: edges in the table",
        LAYERS,
        "table = torch.cat((table, table + columns[:, regions.num_regions :]), 1)",
        "table = torch.cat((table, table), 1)",
        "tests/layers/test_norms.py -k every_plan",
    ),
    Mutation(
        "SPADE: outside the image is zero",
        LAYERS,
        "nothing = columns.new_zeros((9, 2, conv.out_channels))",
        "nothing = columns.new_ones((9, 2, conv.out_channels))",
        "tests/layers/test_norms.py -k every_plan",
    ),
    Mutation(
        "SPADE: 1 + gamma",
        LAYERS,
        "return torch.cat((bias_of(gamma) + 1, bias_of(beta)))",
        "return torch.cat((bias_of(gamma), bias_of(beta)))",
        "tests/layers/test_norms.py -k every_plan",
    ),
    Mutation(
        "SEAN: blend of the biases",
        LAYERS,
        "blend * bias_of(style) + (1 - blend) * bias_of(own) for blend",
        "blend * bias_of(style) + bias_of(own) for blend",
        "tests/layers/test_norms.py -k every_plan",
    ),
    Mutation(
        "SEAN: blend of the dense form",
        LAYERS,
        "gamma = blend_gamma * style_gamma(style_map) + (1 - blend_gamma) * gamma",
        "gamma = blend_gamma * style_gamma(style_map) + gamma",
        "tests/layers/test_norms.py -k every_plan",
    ),
    Mutation(
        "CLADE: soft maps",
        LAYERS,
        'shift = torch.einsum("bkhw,kc->bchw", weights, bias)',
        'shift = torch.einsum("bkhw,kc->bchw", weights, weight)',
        "tests/layers/test_norms.py",
    ),
    Mutation(
        "CLADE: positions",
        LAYERS,
        "shift = shift * (1 + position_shift(near))",
        "shift = shift * position_shift(near)",
        "tests/layers/test_norms.py",
    ),
    Mutation(
        "conv: a changed weight is packed anew",
        LAYERS,
        'derived(module, "prepacked", (module.weight, *how), lambda',
        'derived(module, "prepacked", how, lambda',
        "tests/layers/test_conv.py",
    ),
    Mutation(
        "class codes: divergence per present class",
        LAYERS,
        "count = present.sum(1).clamp(min=1)",
        "count = present.shape[1]",
        "tests/layers/test_class_codes.py",
    ),
    Mutation(
        "attention: gate",
        LAYERS,
        "return torch.sigmoid(self(torch.cat(",
        "return torch.tanh(self(torch.cat(",
        "tests/layers/test_attention.py",
    ),
    Mutation(
        "fusion: folded columns of the first layer",
        LAYERS,
        "part.unflatten(1, (width, self.depth // width)).sum(2)",
        "part.unflatten(1, (width, self.depth // width)).mean(2)",
        "tests/layers/test_fusion.py -k published",
    ),
    Mutation(
        "fusion: order of the first layer's columns",
        LAYERS,
        "a, b, extra, bits = weight.split([self.depth, self.depth, rest, indicator], 1)",
        "a, b, bits, extra = weight.split([self.depth, self.depth, indicator, rest], 1)",
        "tests/layers/test_fusion.py -k columns",
    ),
    Mutation(
        "arguments: integers beyond 32 bits wrap",
        "mixsyn_fast/ops/_common.py",
        "t = t.clamp(_INT32.min, _INT32.max)",
        "t = t.clone()",
        "tests/ops/test_region_norm.py -k out_of_range",
    ),
    Mutation(
        "loader: an order that changed goes on in the middle",
        "models/data/loader.py",
        'self._drawn = 0 if changed else int(state["batches"])',
        'self._drawn = int(state["batches"])',
        "tests/models/data/test_loader.py -k anew",
    ),
    Mutation(
        "training: other class names are passed over",
        "models/training/initial.py",
        "for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b",
        "for i, (a, b) in enumerate(zip(before, now, strict=True)) if a is None",
        "tests/models/training/test_loop.py -k class_names",
    ),
    Mutation(
        "region map: rule of nearest pixels",
        "mixsyn_fast/nearest.py",
        "source = torch.floor(torch.arange(size, dtype=torch.float32, device=device) * scale).to(torch.int64)",
        "source = torch.arange(size, device=device) * full // max(size, 1)",
        "tests/test_region_map.py",
    ),
    Mutation(
        "label patterns: slices outside of a volume",
        "mixsyn_fast/ops/label_patterns.py",
        "numbers, count, span = framed.to(torch.int64), outside + (radius > 0), 1",
        "numbers, count, span = (framed % max(outside, 1)).to(torch.int64), outside + (radius > 0), 1",
        "tests/ops/test_label_patterns.py -k volumes",
    ),
    Mutation(
        "latent map: zeros around a map",
        "mixsyn_fast/latent_map.py",
        "padded = F.pad(features, [1, 1] * len(kernel))",
        'padded = F.pad(features, [1, 1] * len(kernel), mode="replicate")',
        "tests/test_latent_map.py -k upsampling",
    ),
    Mutation(
        "region map: a tap beyond the image",
        "mixsyn_fast/region_map.py",
        "framed = F.pad(fine.index, (1, 1) * len(size), value=len(fine.patterns))",
        "framed = F.pad(fine.index, (1, 1) * len(size), value=0)",
        "tests/layers/test_norms.py tests/test_region_map.py",
    ),
    Mutation(
        "region map: styles of each image",
        "mixsyn_fast/region_map.py",
        "owner = own.row_image[:, None] * len(self.present) + rank",
        "owner = rank",
        "tests/layers/test_norms.py -k every_plan",
    ),
    Mutation(
        "region map: areas without the pixels of no region",
        "mixsyn_fast/region_map.py",
        "return counts[:, 1:].contiguous()",
        "return counts[:, :-1].contiguous()",
        "tests/test_region_map.py",
    ),
    Mutation(
        "accelerate: spectral norm",
        "mixsyn_fast/accelerate/swap.py",
        "folded = weight / torch.dot(u, torch.mv(weight.flatten(1), v))",
        "folded = weight * 1.0",
        "tests/models/test_accelerate.py -k spectral",
    ),
    Mutation(
        "accelerate: bias of a folded convolution",
        "mixsyn_fast/accelerate/swap.py",
        "plain.bias = conv.bias",
        "plain.bias = None",
        "tests/models/test_accelerate.py -k spectral",
    ),
    Mutation(
        "derived values: none while torch.func or forward-mode differentiation transforms",
        "mixsyn_fast/layers/derived.py",
        " or is_transformed():",
        ":",
        "tests/models/test_accelerate_transforms.py -k 'convolutions-eval'",
    ),
    Mutation(
        "derived values: none while operations are traced",
        "mixsyn_fast/layers/derived.py",
        " or is_traced() or",
        " or",
        "tests/models/test_accelerate_transforms.py -k 'norm-eval'",
    ),
    Mutation(
        "accelerate: features narrower than the weights",
        "mixsyn_fast/accelerate/contracts/checks.py",
        "if torch.promote_types(x.dtype, weight.dtype) != x.dtype:",
        "if False:",
        "tests/models/test_accelerate_transforms.py -k 'spade-eval'",
    ),
    Mutation(
        "masked_roi_pool: a backward that is differentiated again",
        "mixsyn_fast/ops/masked_roi_pool.py",
        "backward = _backward_reference if torch.is_grad_enabled() else kernels.backward",
        "backward = kernels.backward",
        "tests/ops/test_masked_roi_pool.py -k second_derivatives",
    ),
    Mutation(
        "accelerate: codes reach SEAN's layers",
        "mixsyn_fast/accelerate/contracts/sean.py",
        "arguments = 4",
        "arguments = 2",
        "tests/models/test_accelerate.py -k 'same_output'",
    ),
    Mutation(
        "accelerate: the map is looked at again before every layer",
        "mixsyn_fast/accelerate/maps.py",
        "if found is None or not found.still_holds(size):",
        "if found is None:",
        "tests/models/test_accelerate.py -k edit_of_the",
    ),
    Mutation(
        "accelerate: pixels of no region are looked at too",
        "mixsyn_fast/accelerate/maps.py",
        "(pixel[~inside][:, None] + planes).reshape(-1)",
        "pixel.reshape(-1)[:0]",
        "tests/models/test_accelerate.py -k edit_of_the",
    ),
    Mutation(
        "accelerate: columns with equal sums are compared",
        "mixsyn_fast/accelerate/maps.py",
        "values) if same else None",
        "values)",
        "tests/models/test_accelerate_kin.py -k columns_of_a_map",
    ),
    Mutation(
        "accelerate: a map of columns is looked at where columns differ",
        "mixsyn_fast/accelerate/maps.py",
        "return self._pixels[size].hold(segmap)",
        "return self.columns.values is not None or self._pixels[size].hold(segmap)",
        "tests/models/test_accelerate_kin.py -k looked_at_again",
    ),
    Mutation(
        "accelerate: of every image the first pixel is looked at",
        "mixsyn_fast/accelerate/maps.py",
        "begins = torch.ones(batch, pixels, dtype=torch.bool, device=segmap.device)",
        "begins = torch.zeros(batch, pixels, dtype=torch.bool, device=segmap.device)\n    begins[0, 0] = True",
        "tests/models/test_accelerate_maps.py -k columns_whatever",
    ),
    Mutation(
        "accelerate: what layers share is of one map",
        "mixsyn_fast/accelerate/maps.py",
        "if found is not None and found.holds_for(segmap):",
        "if found is not None:",
        "tests/models/test_accelerate_maps.py -k same_weights",
    ),
    Mutation(
        "accelerate: what layers share is freed behind the last",
        "mixsyn_fast/accelerate/maps.py",
        "                del self.results[key]\n",
        "                pass\n",
        "tests/models/test_accelerate_maps.py -k same_weights",
    ),
    Mutation(
        "accelerate: nothing is shared that needs a gradient",
        "mixsyn_fast/layers/stacks.py",
        "if hidden_of is None or gradient else",
        "if hidden_of is None else",
        "tests/models/test_accelerate_maps.py -k same_weights",
    ),
    Mutation(
        "dense stacks: kept kernels are those of the grid",
        "mixsyn_fast/layers/dense_stacks.py",
        "(*parameters, values.grid), make)",
        "parameters, make)",
        "tests/layers/test_stacks.py -k kept_kernels",
    ),
    Mutation(
        "dense stacks: the statistics of a norm are those of all pixels",
        "mixsyn_fast/layers/dense_stacks.py",
        "grid = None  # its statistics are those of all pixels",
        "pass",
        "tests/layers/test_stacks.py -k convolutions_of_features_fold",
    ),
    Mutation(
        "latent map: taps that read one cell are added",
        "mixsyn_fast/latent_map.py",
        "kind.merges.count(cell)).sum(dim, keepdim=True)",
        "1)",
        "tests/test_latent_map.py -k equals_upsampling",
    ),
    Mutation(
        "latent map: windows of other steps are gathered",
        "mixsyn_fast/latent_map.py",
        "if not step or any(b[0] - a[0] != step for a, b in zip(chosen, chosen[1:], strict=False)):",
        "if not step:",
        "tests/test_latent_map.py -k equals_upsampling",
    ),
    Mutation(
        "accelerate: what a layer does with maps that are not one-hot is checked",
        "mixsyn_fast/accelerate/contracts/spade.py",
        "segmap[-1] = torch.randn(segmap.shape[1:])",
        "pass",
        "tests/models/test_accelerate_kin.py -k only_looks_like",
    ),
    Mutation(
        "accelerate: the first frame of a video is no other's source",
        "mixsyn_fast/accelerate/contracts/forms.py",
        "nn.functional.pad(rest + 1, (1, 0))",
        "nn.functional.pad(rest, (1, 0))",
        "tests/models/test_accelerate_kin.py -k first_frame",
    ),
    Mutation(
        "accelerate: a layer that reads its cache keeps its forward",
        "mixsyn_fast/accelerate/probe.py",
        'raise _Refused("it reads its cache")',
        "continue",
        "tests/models/test_accelerate_kin.py -k reads_its_cache",
    ),
    Mutation(
        "accelerate: tables know padding by zeros alone",
        "mixsyn_fast/layers/stacks.py",
        " or is_padded_otherwise(layer):",
        ":",
        "tests/models/test_accelerate_kin.py -k other_padding",
    ),
    Mutation(
        "accelerate: instances of one image are none of another's",
        "mixsyn_fast/accelerate/instances.py",
        "(row + (image * slots - begins[:, None])[..., None])",
        "(row + (0 * image)[..., None])",
        "tests/models/test_accelerate_kin.py -k class_and_instance",
    ),
    Mutation(
        "constant conditioning: dropped with the weights",
        "mixsyn_fast/accelerate/constant.py",
        "mark is None and tensor is None if mark is None or tensor is None else mark.matches(tensor)",
        "True",
        "tests/models/test_constant_conditioning.py -k outlives",
    ),
    Mutation(
        "constant conditioning: a map is known by its content",
        "mixsyn_fast/accelerate/constant.py",
        " and torch.equal(snapshot, segmap.detach())",
        "",
        "tests/models/test_constant_conditioning.py -k bit_for_bit",
    ),
    Mutation(
        "stacks: rows outside the image are zero",
        "mixsyn_fast/layers/stacks.py",
        "rows = F.pad(rows, (0, 0, 0, padded_count(len(rows) + 1) - len(rows)))",
        "rows = F.pad(rows, (0, 0, 0, padded_count(len(rows) + 1) - len(rows)), value=1.0)",
        "tests/layers/test_stacks.py -k table_and_dense",
    ),
    Mutation(
        "stacks: the bias of an affine norm is scaled",
        "mixsyn_fast/layers/stacks.py",
        "torch.addcmul(shift, scale, bias)",
        "shift + bias",
        "tests/layers/test_stacks.py -k every_norm",
    ),
    Mutation(
        "stacks: statistics are those of the pixels, not of the rows",
        "mixsyn_fast/layers/neighbourhoods.py",
        "return owns * (counted / pixels), image",
        "return owns / owns.sum(1, keepdim=True), image",
        "tests/layers/test_stacks.py -k table_and_dense",
    ),
    Mutation(
        "neighbourhoods: outside the image is not no region",
        "mixsyn_fast/layers/neighbourhoods.py",
        "of_code[count], of_code[count + 1] = rows, count",
        "of_code[count], of_code[count + 1] = count, count",
        "tests/layers/test_stacks.py -k taps_are_those",
    ),
    Mutation(
        "neighbourhoods: wide windows are told apart from both sides",
        "mixsyn_fast/layers/neighbourhoods.py",
        "for first in (0, 2 * step):",
        "for first in (0,):",
        "tests/layers/test_stacks.py -k wide_windows",
    ),
    Mutation(
        "accelerate: a layer in another state is checked again",
        "mixsyn_fast/accelerate/probe.py",
        "key = original_class(module), options, state, variant",
        "key = original_class(module), options, variant",
        "tests/models/test_accelerate.py -k changed_after_the_check",
    ),
    Mutation(
        "accelerate: the check trips over obj_dic before a file is written",
        "mixsyn_fast/accelerate/probe.py",
        "if not self.touches(inputs, obj_dic):",
        "if False:",
        "tests/models/test_accelerate.py -k obj_dic",
    ),
    Mutation(
        "derived: a weight that comes or goes",
        "mixsyn_fast/layers/derived.py",
        "return bool(mark == source)",
        "return True",
        "tests/models/test_accelerate.py -k 'changed_after or follows_its_settings'",
    ),
    Mutation(
        "region map: a mask with a second region on a pixel is not one-hot",
        "mixsyn_fast/region_map.py",
        " & (torch.count_nonzero(mask) == (labels >= 0).sum())",
        "",
        "tests/test_region_map.py",
    ),
    Mutation(
        "data: left and right of a mirrored picture",
        "models/data/dataset.py",
        "labels=self._exchange[item.labels[:, ::-1] + 1],",
        "labels=item.labels[:, ::-1],",
        "tests/models/data/test_dataset.py",
    ),
    Mutation(
        "data: pixel centres of the labels",
        "models/data/dataset.py",
        "rows = np.floor(upper + (np.arange(height) + 0.5)",
        "rows = np.floor(upper + (np.arange(height) + 0.0)",
        "tests/models/data/test_dataset.py",
    ),
    Mutation(
        "data: share of a process",
        "models/data/loader.py",
        "start = batch * self.batch_size + self.rank * share",
        "start = batch * self.batch_size",
        "tests/models/data/test_loader.py",
    ),
    Mutation(
        "fusion: a node runs whose child has no entry",
        "mixsyn_fast/layers/fusion_hierarchy.py",
        "missing = [child for child in children if child not in given]",
        "missing = [child for child in children if not {child, *self.below(child)} & given]",
        "tests/layers/test_fusion.py -k 'bypass or network'",
    ),
    Mutation(
        "stylefusion: product of pixels and centres",
        "models/stylefusion/segments.py",
        "found.append(((2 * scaled)",
        "found.append(((1 * scaled)",
        "tests/models/stylefusion/test_segments.py -k dense",
    ),
    Mutation(
        "stylefusion: deep pixels by repetition",
        "models/stylefusion/segments.py",
        'return F.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)',
        'return F.interpolate(maps, size=(side, side), mode="nearest")',
        "tests/models/stylefusion/test_segments.py -k gradient",
    ),
    Mutation(
        "stylefusion: masks of small layers in M",
        "models/stylefusion/correlation.py",
        'mode="area" if own < side else "nearest"',
        'mode="nearest"',
        "tests/models/stylefusion/test_segments.py -k equation",
    ),
    Mutation(
        "stylefusion: which region a term of Eq. 5 is of",
        "models/losses/stylefusion.py",
        "torch.stack((image - second, image - first), 1)",
        "torch.stack((image - first, image - second), 1)",
        "tests/models/losses/test_stylefusion.py -k equation",
    ),
    Mutation(
        "stylefusion: the mask of Eq. 5 has a gradient",
        "models/losses/stylefusion.py",
        "    masks = masks.detach()\n",
        "",
        "tests/models/losses/test_stylefusion.py -k gradients",
    ),
    Mutation(
        "training: a phase goes on after its window",
        "models/training/task.py",
        "return step >= self.start and (self.stop is None or step < self.stop)",
        "return step >= self.start",
        "tests/models/training/test_sets.py -k windows",
    ),
    Mutation(
        "training: moments stay when a period ends before the window",
        "models/training/task.py",
        "step + self.every >= self.stop",
        "step + 1 == self.stop",
        "tests/models/training/test_sets.py -k windows",
    ),
    Mutation(
        "stylefusion: bit of the first stage",
        "models/stylefusion/task.py",
        "given.align.repeat(2, 1), rgb_bit=True)",
        "given.align.repeat(2, 1))",
        "tests/models/stylefusion/test_task.py -k second_form",
    ),
    Mutation(
        "stylefusion: order of the children above",
        "models/stylefusion/task.py",
        "pair = (code, beside) if self.tree.tree[parent][0] == node else (beside, code)",
        "pair = (code, beside)",
        "tests/models/stylefusion/test_task.py -k second_form",
    ),
    Mutation(
        "clvae: an edit begins one block late",
        "models/clvae/model.py",
        "return names[at:]",
        "return names[at + 1 :]",
        "tests/models/clvae/test_model.py -k first_block",
    ),
    Mutation(
        "clvae: an edit of some levels changes all",
        "models/clvae/codes.py",
        "classes[at, k] = given[at].to(classes)",
        "classes[:, k] = given.to(classes)",
        "tests/models/clvae/test_model.py -k leaves_all_other_codes",
    ),
    Mutation(
        "clvae: absent classes are not drawn",
        "models/clvae/model.py",
        "if name not in known)",
        "if False)",
        "tests/models/clvae/test_model.py -k style_gives",
    ),
    Mutation(
        "harmonized: the attention reads the composed codes",
        "models/harmonized/model.py",
        "self.attention(codes[None], own[None], (own != 0).any(1)[None])",
        "self.attention(codes[None], codes[None], (own != 0).any(1)[None])",
        "tests/models/harmonized/test_model.py -k its_regions_alone",
    ),
    Mutation(
        "harmonized: regions that are gone are attended to",
        "models/harmonized/model.py",
        "own[gone] = 0",
        "pass",
        "tests/models/harmonized/test_model.py -k attended_to_by_none",
    ),
    Mutation(
        "harmonized: codes that a caller has are those remembered",
        "models/harmonized/model.py",
        'return codes.to("cpu", torch.float32, copy=True)',
        "return codes.cpu()",
        "tests/models/harmonized/test_model.py -k what_the_networks_give",
    ),
    Mutation(
        "harmonized: images are remembered whatever the noise",
        "models/harmonized/model.py",
        "np.array(self.noise_seed)",
        "np.array(0)",
        "tests/models/harmonized/test_model.py -k noise_is_that",
    ),
    Mutation(
        "harmonized: a stroke paints every region that it touches",
        "models/harmonized/model.py",
        "inside & (fitted == region)",
        "inside",
        "tests/models/harmonized/test_model.py -k most_of_it_lies",
    ),
    Mutation(
        "harmonized: a slider's third slope",
        "models/harmonized/flow.py",
        "second - first / 3",
        "second - first / 2",
        "tests/models/harmonized/test_model.py -k sliders_steps",
    ),
    Mutation(
        "harmonized: a study's letters and key",
        "models/harmonized/study.py",
        "folders[method][row.name]) for method in row.methods",
        "folders[method][row.name]) for method in sorted(row.methods)",
        "tests/models/harmonized/test_commands.py -k hides_the_methods",
    ),
    Mutation(
        "harmonized: the halves of the set change places",
        "models/harmonized/evaluate.py",
        "self.items[:half], self.items[half:]",
        "self.items[half:], self.items[:half]",
        "tests/models/harmonized/test_evaluate.py -k what_it_says",
    ),
    Mutation(
        "harmonized: flows of the models beside the first are judged as its own",
        "models/harmonized/evaluate.py",
        '{by_flow(name): (model, "flow")',
        '{by_flow(OURS): (model, "flow")',
        "tests/models/harmonized/test_evaluate.py -k flows_of_every",
    ),
    Mutation(
        "study: answers that somebody filled in are replaced",
        "models/harmonized/study.py",
        "is_file() and answered(",
        "is_file() and not answered(",
        "tests/models/harmonized/test_commands.py -k not_replaced",
    ),
    Mutation(
        "clvae: locality of the pixels outside",
        "models/metrics/locality.py",
        "float(change[region].sum())",
        "float(change[~region].sum())",
        "tests/models/metrics/test_locality.py",
    ),
    *(
        Mutation(f"msca: {what}", f"models/{file}", old, new, f"tests/models/{tests}")
        for what, file, old, new, tests in (
            (
                "pyramid, product of rows of labels",
                "msca/networks.py",
                "F.linear(rows, weight[:, :, 0, 0])",
                "F.linear(rows.abs(), weight[:, :, 0, 0])",
                "msca/test_networks.py -k the_pyramid",
            ),
            (
                "pyramid, pixels of no label",
                "msca/networks.py",
                "(0, 0, 0, 1))",
                "(0, 0, 0, 1), value=1.0)",
                "msca/test_networks.py -k the_pyramid",
            ),
            (
                "pyramid, columns of a soft map",
                "msca/networks.py",
                "[:, -self.num_labels :].to(raised.dtype)",
                "[:, : self.num_labels].to(raised.dtype)",
                "msca/test_networks.py -k the_pyramid",
            ),
            (
                "mask at coarser scales",
                "msca/networks.py",
                "F.adaptive_max_pool2d(mask[:, None].float(), sizes[scale])",
                "F.interpolate(mask[:, None].float(), sizes[scale])",
                "msca/test_networks.py -k masked",
            ),
            (
                "mask of a label's mean",
                "msca/aligners.py",
                "torch.where(mask, regions.labels_at(size), -1)",
                "regions.labels_at(size)",
                "msca/test_networks.py -k masked",
            ),
            (
                "gates of a mixture",
                "msca/networks.py",
                "* (weights[j] / total)",
                "/ len(used)",
                "msca/test_networks.py -k one_softmax",
            ),
            (
                "shares of positions at coarser scales",
                "msca/networks.py",
                "F.adaptive_avg_pool2d(weight_maps.to(target.maps.dtype), size)",
                "F.interpolate(weight_maps.to(target.maps.dtype), size)",
                "msca/test_networks.py -k every_position",
            ),
            (
                "boxes pushed past the border",
                "msca/patches.py",
                "max(0, missing - room), min(ways[near], missing)",
                "0, min(ways[near], missing)",
                "msca/test_task.py -k apart",
            ),
            (
                "boxes that still overlap",
                "msca/patches.py",
                "missing = size[axis] - abs(ways[0] - ways[1])",
                "missing = size[axis] - abs(ways[0] - ways[1]) - 1",
                "msca/test_task.py -k apart",
            ),
            (
                "lambda",
                "msca/task.py",
                "self.config.global_weight * loss",
                "loss",
                "msca/test_task.py -k discriminators_step",
            ),
            (
                "targets of the perceptual loss of patches",
                "msca/task.py",
                'features if pair.is_self and self.config.generator.trunk == "vgg"',
                'features if self.config.generator.trunk == "vgg"',
                "msca/test_task.py -k one_vgg",
            ),
            (
                "patches of the last stage",
                "msca/task.py",
                "            draw_both = _draw_anywhere\n",
                "",
                "msca/test_task.py -k of_the_stages",
            ),
            (
                "mirrored exemplars",
                "msca/patches.py",
                "pair.image.flip(3), regions)",
                "pair.image, regions)",
                "msca/test_task.py -k mirror_images",
            ),
            (
                "discriminator, rows of the exemplar's map",
                "discriminators.py",
                "* table.shape[1] + before",
                "* table.shape[1]",
                "test_discriminators.py -k beside_an_exemplar",
            ),
            (
                "discriminator, columns of the exemplar",
                "discriminators.py",
                "conv.weight[:, first : first + 3]",
                "conv.weight[:, first + 3 :]",
                "test_discriminators.py -k beside_an_exemplar",
            ),
            (
                "discriminator, the exemplar at half the size",
                "discriminators.py",
                "torch.cat((given, _halved(image).to(dtype)), 1)",
                "torch.cat((given, _halved(image.abs()).to(dtype)), 1)",
                "test_discriminators.py -k beside_an_exemplar",
            ),
        )
    ),
    Mutation(
        "msca: compression folded into phi",
        "mixsyn_fast/layers/attention.py",
        "return weight_features @ compress, weight_condition",
        "return (weight_features @ compress).relu(), weight_condition",
        "tests/models/msca/test_networks.py -k test_alignment",
    ),
    Mutation(
        "msca: weight of an exemplar in a mixture",
        "mixsyn_fast/layers/attention.py",
        "log_masses[i] + math.log(weights[i])",
        "log_masses[i] + weights[i]",
        "tests/models/msca/test_networks.py -k one_softmax",
    ),
    Mutation(
        "msca: the label features' part of the kernel of both",
        "mixsyn_fast/layers/attention.py",
        "torch.cat((own, weight[:, features:]), 1)",
        "torch.cat((own, weight[:, :extra]), 1)",
        "tests/layers/test_attention.py -k folded",
    ),
    Mutation(
        "msca: weights of windows that sum to one",
        "models/msca/blending.py",
        "bump / total[y : y + height, x : x + width]",
        "bump",
        "tests/models/msca/test_model.py -k sum_to_one",
    ),
    Mutation(
        "msca: what reaches its own class passes the gates",
        "models/msca/model.py",
        "found: np.ndarray = self.beta.mean((1, 2)) * self.gates",
        "found: np.ndarray = self.beta.mean((1, 2))",
        "tests/models/msca/test_model.py -k own_class",
    ),
    Mutation(
        "msca: another VGG than the run's",
        "models/msca/features.py",
        "if found != expected:",
        "if False:",
        "tests/models/msca/test_model.py -k knows_its_vgg",
    ),
    Mutation(
        "training: the best before the last stage",
        "models/training/trainer.py",
        "if self.step <= self.task.best_from or (",
        "if (",
        "tests/models/training/test_loop.py -k of_the_last_stage",
    ),
    Mutation(
        "training: the adversarial loss's part of the gradient",
        "models/reconstruction.py",
        "norms(replace(config, gan=0.0), perceptual)",
        "norms(config, perceptual)",
        "tests/models/test_reconstruction.py -k discriminator_teaches",
    ),
    Mutation(
        "training: gradients of batches of other sizes",
        "models/training/judged.py",
        "(norms.double() * len(norms)).square()",
        "norms.double().square()",
        "tests/models/training/test_judged.py -k the_figures",
    ),
    Mutation(
        "msca: what is kept depends on how it was computed",
        "models/memory.py",
        'f"{current_plan()} {current_backend()} {precision} {weights}".encode()',
        'f"{precision} {weights}".encode()',
        "tests/models/msca/test_model.py -k kept_apart",
    ),
    Mutation(
        "harmonized: what is kept is of any weights",
        "models/harmonized/model.py",
        "return digest(*arrays) + state(self._networks().values(), self.device)",
        "return digest(*arrays)",
        "tests/models/harmonized/test_model.py -k what_is_kept",
    ),
    Mutation(
        "clvae: what is kept is of any weights",
        "models/clvae/model.py",
        "return digest(*arrays) + state([network], self.device)",
        "return digest(*arrays)",
        "tests/models/clvae/test_model.py -k what_is_kept",
    ),
    Mutation(
        "region_norm: both passes share statistics of one plane",
        "csrc/region_norm_cpu.cpp",
        "typed.kernels.backward_planes(p, shared, count, begin, end)",
        "typed.kernels.backward_planes(p, 1, count, begin * shared, end * shared)",
        "tests/ops/test_region_norm.py -k both_passes",
    ),
    Mutation(
        "mixsyn: styles learn from the live structure",
        "models/mixsyn/task.py",
        "for stage, (start, stop) in enumerate(((0, first), (first, None))):",
        "for stage, (start, stop) in enumerate(((0, None), (first, None))):",
        "tests/models/mixsyn/test_task.py -k staged",
    ),
    Mutation(
        "msca: halves of other weights",
        "models/memory.py",
        "0 if tensor.is_inference() else tensor._version",
        "0",
        "tests/models/msca/test_model.py -k other_weights",
    ),
    Mutation(
        "msca: halves of another precision",
        "models/memory.py",
        "torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None",
        "None",
        "tests/models/msca/test_model.py -k one_precision",
    ),
    Mutation(
        "msca: an exemplar cut to the model's proportions",
        "models/msca/config.py",
        "min(round(side * scale / MULTIPLE) * MULTIPLE, LONGEST * wanted)",
        "wanted",
        "tests/models/msca/test_model.py -k seen_whole",
    ),
    Mutation(
        "msca: a larger exemplar counts more in a mixture",
        "models/msca/aligners.py",
        "return found - math.log(features.shape[2] * features.shape[3])",
        "return found",
        "tests/models/msca/test_networks.py -k larger",
    ),
    Mutation(
        "msca: a run's VGG that lies elsewhere",
        "models/training/trained.py",
        '{**whole["task"], **(replaced or {})}',
        'whole["task"]',
        "tests/models/msca/test_model.py -k knows_its_vgg",
    ),
    Mutation(
        "msca: a weight map is fitted as the label map is",
        "models/msca/model.py",
        "fit_labels(at, (size[0], size[1]))",
        "at[: size[0], : size[1]]",
        "tests/models/msca/test_model.py -k fitted_as",
    ),
    Mutation(
        "msca: a mixture without the exemplars of weight 0",
        "models/msca/model.py",
        "zip(pictures, weights, strict=True) if weight > 0]",
        "zip(pictures, weights, strict=True)]",
        "tests/models/msca/test_model.py -k ends",
    ),
    Mutation(
        "msca: the scale's bias that is kept",
        "mixsyn_fast/layers/attended.py",
        "lambda: before + 1)",
        "lambda: before)",
        "tests/layers/test_attended.py -k kept",
    ),
    Mutation(
        "msca: the scale in training",
        "mixsyn_fast/layers/attended.py",
        "return 1 + gamma(hidden), beta(hidden)",
        "return gamma(hidden), beta(hidden)",
        "tests/layers/test_attended.py -k norm",
    ),
    *(
        Mutation(f"harmonized: {what}", f"models/harmonized/{file}", old, new, f"tests/models/harmonized/{tests}")
        for what, file, old, new, tests in (
            (
                "a layer's share of the code",
                "encoder.py",
                "codes = codes + alpha * projection(each)",
                "codes = codes + projection(each)",
                "test_networks.py -k pooled_before",
            ),
            (
                "map of a quarter, upsampled",
                "encoder.py",
                'masked_roi_pool(maps[2], spread_weights(half), mode="mean")',
                'masked_roi_pool(maps[2], half, mode="mean")',
                "test_networks.py -k pooled_before",
            ),
            (
                "softmax of the layers' weights",
                "encoder.py",
                "torch.softmax(weights, 0) if self.softmax",
                "weights if self.softmax",
                "test_networks.py -k pooled_before",
            ),
            (
                "absent regions are attended to",
                "attention.py",
                "keys = (present | ~present.any(1, keepdim=True))[:, None]",
                "keys = torch.ones_like(present)[:, None]",
                "test_networks.py -k attended_to_by_none",
            ),
            ("attention's scale", "attention.py", "scale=1.0", "scale=None", "test_networks.py -k equations_4"),
            (
                "codes that the reference lacks",
                "attention.py",
                "(taken & reference_has.to(torch.bool))[..., None]",
                "(taken | torch.zeros_like(reference_has, dtype=torch.bool))[..., None]",
                "test_networks.py -k composed_codes",
            ),
            (
                "regions that have a code",
                "generator.py",
                "(height // 2, width // 2)",
                "(height, width)",
                "test_networks.py -k has_a_code",
            ),
            (
                "a region's own layers",
                "mapping.py",
                "found.append(last(y))",
                "found.append(last(x))",
                "test_networks.py -k shared_layers",
            ),
            (
                "trace of the likelihood",
                "flow.py",
                "likelihood: Tensor = gained - 0.5",
                "likelihood: Tensor = -gained - 0.5",
                "test_networks.py -k gaussian",
            ),
            (
                "deviation in the likelihood",
                "flow.py",
                "return likelihood - self.scale().log().sum()",
                "return likelihood",
                "test_networks.py -k gaussian",
            ),
            (
                "Hutchinson's vectors",
                "flow.py",
                ".bernoulli_().mul_(2).sub_(1)",
                ".bernoulli_()",
                "test_networks.py -k hutchinsons",
            ),
            (
                "decoding runs back in time",
                "flow.py",
                "self._solved(self._checked(z), solver, forward=False)",
                "self._solved(self._checked(z), solver, forward=True)",
                "test_networks.py -k round_trip",
            ),
            (
                "deviation over several batches",
                "flow.py",
                "spread += step.square() * (before * count / whole)",
                "spread += 0 * step",
                "test_networks.py -k in_parts",
            ),
            (
                "pictures with a part of the group",
                "task.py",
                "self.present[:, index].all(1)",
                "self.present[:, index].any(1)",
                "test_task.py -k equation_6",
            ),
            (
                "a batch without the group",
                "task.py",
                "if len(real) else 0 * logits.sum()",
                "if len(real) else logits.sum()",
                "test_task.py -k teaches_nothing",
            ),
            (
                "the encoder moves in later stages",
                "task.py",
                "self.networks[name].eval()",
                "self.networks[name].train()",
                "test_task.py -k encoder_rests",
            ),
            (
                "statistics never settle",
                "task.py",
                "if step < self.flow_start + self.config.flow_statistics:",
                "if step >= self.flow_start:",
                "test_task.py -k standardised_codes",
            ),
            (
                "random codes of absent regions",
                "task.py",
                "composed = composed_codes(composed, whole, regions, target.present)",
                "composed = whole",
                "test_task.py -k groups_alone",
            ),
            (
                "KLD of absent regions",
                "task.py",
                "kld_loss(mean[present], log_variance[present])",
                "kld_loss(mean.flatten(0, 1), log_variance.flatten(0, 1))",
                "test_task.py -k regions_that_are_there",
            ),
        )
    ),
    Mutation(
        "training: what is over goes on as its average",
        "models/training/trainer.py",
        "            self.ema.settle(self._ended())\n",
        "",
        "tests/models/harmonized/test_task.py -k every_stage_moves",
    ),
    Mutation(
        "training: first weights behind torch's spectral norm",
        "models/reconstruction.py",
        "weight = module.parametrizations.weight.original",
        "pass",
        "tests/models/harmonized/test_task.py -k behind_torchs",
    ),
    Mutation(
        "harmony: covariance of recoloured regions",
        "models/harmony.py",
        "_power(root @ wanted_covariance @ root, 0.5)",
        "_power(wanted_covariance, 0.5)",
        "tests/models/test_harmony.py -k others_mean",
    ),
    Mutation(
        "harmony: colours of the picture itself",
        "models/harmony.py",
        "has[:, region].T & ~torch.eye(batch,",
        "has[:, region].T & torch.eye(batch,",
        "tests/models/test_harmony.py -k another_picture",
    ),
    Mutation(
        "harmony: a composite that changes nothing",
        "models/harmony.py",
        "valid = any_region & (change >= config.least_change)",
        "valid = any_region",
        "tests/models/test_harmony.py -k no_partner",
    ),
    Mutation(
        "msca: masses of labels are means",
        "models/msca/label_transfer.py",
        "return (means * areas[:, :, None])",
        "return means",
        "tests/models/msca/test_transfer.py -k masses",
    ),
    Mutation(
        "msca: gates of the pair turned round",
        "models/msca/label_transfer.py",
        "gate.gates(theirs.to(device), means.to(device))",
        "gate.gates(means.to(device), theirs.to(device))",
        "tests/models/msca/test_transfer.py -k one_hot",
    ),
    Mutation(
        "msca: a picture is its own exemplar",
        "models/msca/label_transfer.py",
        "weights[i] = 0",
        "weights[i] = weights[i]",
        "tests/models/msca/test_transfer.py -k one_hot",
    ),
    Mutation(
        "msca: the exemplar of a mirrored picture",
        "models/msca/evaluate.py",
        "return Posed(item, reference.dataset.mirrored(item), item.image)",
        "return Posed(item, item, item.image)",
        "tests/models/msca/test_evaluate.py -k ask_for",
    ),
    Mutation(
        "msca: the exemplar takes the picture's colours",
        "models/msca/evaluate.py",
        "transfer_colours(item.image, exemplar.image)",
        "transfer_colours(exemplar.image, item.image)",
        "tests/models/msca/test_evaluate.py -k best_match",
    ),
    Mutation(
        "retrieval: without the flow",
        "models/evaluation/retrieval.py",
        "np.stack([at + move for",
        "np.stack([at + 0 * move for",
        "tests/models/evaluation/test_retrieval.py -k shift",
    ),
    Mutation(
        "colours: whitening alone",
        "models/pictures/colours.py",
        "_root(root @ theirs @ root)",
        "_root(theirs)",
        "tests/models/pictures/test_colours.py -k mean_and_covariance",
    ),
    Mutation(
        "style: weights of a region",
        "models/feature_networks.py",
        "shares.sum(2, keepdim=True)",
        "rows.shape[2]",
        "tests/models/metrics/test_style.py -k regions",
    ),
    Mutation(
        "columns: differences of other pictures",
        "models/evaluation/columns.py",
        "for name, value in zip(score.names, score.values, strict=True) if name in known",
        "for name, value in zip(first.names, score.values) if name in known",
        "tests/models/evaluation/test_columns.py -k same_pictures",
    ),
    Mutation(
        "plans: blocks of vectors ask for class plans",
        "models/reconstruction.py",
        'kind: Kind = "classes" if name in generator.blocks_of_vectors else "shared"',
        'kind: Kind = "shared"',
        "tests/models/clvae/test_task.py -k analysis",
    ),
    Mutation(
        "plans: of a map without edges",
        "mixsyn_fast/region_map.py",
        "regions = self if edges else self.without_edges()",
        "regions = self",
        "tests/models/clvae/test_task.py -k 'analysis and edges'",
    ),
    Mutation(
        "plans: a map without edges travels",
        "mixsyn_fast/region_map.py",
        "bare._cache = {key: apply(value) for key, value in self._bare._cache.items()}",
        "pass",
        "tests/models/data/test_dataset.py -k edges_travel",
    ),
    Mutation(
        "rarity: bandwidth by Scott",
        "models/data/rarity.py",
        "count ** (-2 / 7)",
        "count ** (-1 / 7)",
        "tests/models/data/test_rarity.py -k formula",
    ),
    Mutation(
        "rarity: the rare, not the usual",
        "models/data/rarity.py",
        "(1 / densities(np.array(each), bandwidth))",
        "densities(np.array(each), bandwidth)",
        "tests/models/data/test_rarity.py -k rarest",
    ),
    Mutation(
        "rarity: every class as often",
        "models/data/rarity.py",
        "scores / scores.sum() / len(chosen)",
        "scores / len(chosen)",
        "tests/models/data/test_rarity.py -k chances",
    ),
    Mutation(
        "rarity: draws in proportion to chances",
        "models/data/loader.py",
        "np.searchsorted(ends, np.arange(self.length) + rng.random()",
        "np.searchsorted(ends, np.arange(self.length) * rng.random()",
        "tests/models/data/test_rarity.py -k drawn_by",
    ),
    Mutation(
        "rarity: a picture drawn twice has two crops",
        "models/data/loader.py",
        "crop = number if self.chances is None else number * self.length + within",
        "crop = number",
        "tests/models/data/test_rarity.py -k anew",
    ),
    Mutation(
        "rarity: weights of a mirrored picture",
        "models/data/dataset.py",
        "weights[np.roll(self._exchange, -1)]",
        "weights",
        "tests/models/data/test_rarity.py -k flip",
    ),
    Mutation(
        "rarity: pixels of no class",
        "models/data/batch.py",
        "torch.where(labels < 0, self.regions.num_regions, labels)",
        "labels.clamp(min=0)",
        "tests/models/test_reconstruction.py -k per_pixel",
    ),
    Mutation(
        "loss: a mask by areas",
        "models/losses/l1.py",
        'mode="area"',
        'mode="nearest"',
        "tests/models/losses/test_losses.py -k masked",
    ),
    Mutation(
        "training: warm-up",
        "models/training/schedule.py",
        "return factor * min(1.0, (step + 1) / self.warmup)",
        "return factor * min(1.0, step / self.warmup)",
        "tests/models/training/test_schedule.py",
    ),
    Mutation(
        "training: cosine",
        "models/training/schedule.py",
        "(1.0 + math.cos(math.pi * progress))",
        "(1.0 + math.cos(progress))",
        "tests/models/training/test_schedule.py",
    ),
    Mutation(
        "training: weight of the average",
        "models/training/ema.py",
        "(1 + step) / (10 + step)",
        "(1 + step) / (11 + step)",
        "tests/models/training/test_ema.py",
    ),
    Mutation(
        "training: micro-batches are averaged",
        "models/training/trainer.py",
        ".sum() / len(batches)\n",
        ".sum()\n",
        "tests/models/training/test_loop.py -k accumulated",
    ),
    Mutation(
        "training: other networks are frozen",
        "models/training/trainer.py",
        "parameter.requires_grad_(network in phase.networks)",
        "parameter.requires_grad_(True)",
        "tests/models/training/test_loop.py -k no_gradient_reaches",
    ),
    Mutation(
        "resume: random numbers of a step",
        "models/training/trainer.py",
        "distributed.seed_step(options.seed, self.world.rank, self.step)",
        "distributed.seed_step(options.seed, self.world.rank, 0)",
        "tests/models/training/test_loop.py -k draws_other_numbers",
    ),
    Mutation(
        "resume: optimisers",
        "models/training/trainer.py",
        "restore_optimizer(optimizer, packing.unpack_optimizer(*packed))",
        "packing.unpack_optimizer(*packed)",
        "tests/models/training/test_loop.py -k 'resumed or resume'",
    ),
    Mutation(
        "resume: place in the data",
        "models/training/trainer.py",
        'self.loader.load_state_dict(state["loader"])',
        "pass",
        "tests/models/training/test_loop.py -k resumed",
    ),
    Mutation(
        "training: period of a phase",
        "models/training/task.py",
        "(step - self.start) % self.every == 0",
        "(step + 1 - self.start) % self.every == 0",
        "tests/models/training/test_sets.py -k every_period",
    ),
    Mutation(
        "training: rates of phases that ran",
        "models/training/trainer.py",
        "[name for name in self.optimizers if name in phases]",
        "list(self.optimizers)",
        "tests/models/training/test_sets.py -k every_period",
    ),
    Mutation(
        "data: codes are the same for ever",
        "models/data/latents.py",
        "MT19937([self.seed, index])",
        "MT19937([self.seed, index, key[0] if isinstance(key, tuple) else 0])",
        "tests/models/training/test_sets.py -k for_ever",
    ),
    Mutation(
        "processes: each judges its part",
        "models/data/loader.py",
        "range(self.rank * share, count, self.batch_size)",
        "range(0, count, self.batch_size)",
        "tests/models/training/test_shared.py -k last_digit",
    ),
    Mutation(
        "processes: noise of a batch",
        "models/training/trainer.py",
        "place * world.size + world.rank, -1",
        "place, -1",
        "tests/models/training/test_shared.py -k last_digit",
    ),
    Mutation(
        "processes: scores in the order of one",
        "models/metrics/score.py",
        "key=lambda i: place[found.names[i]]",
        "key=lambda i: 0",
        "tests/models/training/test_shared.py -k 'comparison_is'",
    ),
    Mutation(
        "checkpoint: the best is kept",
        "models/training/checkpoint.py",
        "keep |= set([s for s in sorted(past) if _is_best(past[s])][-1:])",
        "pass",
        "tests/models/training/test_checkpoint.py",
    ),
    Mutation(
        "checkpoint: killed between two renames",
        "models/training/checkpoint.py",
        "os.replace(path, target)\n        elif",
        "_discard(path)\n        elif",
        "tests/models/training/test_checkpoint_failures.py -k killed",
    ),
    Mutation(
        "checkpoint: tensors that share memory",
        "models/training/checkpoint.py",
        "if storage in seen:",
        "if False:",
        "tests/models/training/test_checkpoint.py",
    ),
    Mutation(
        "losses: hinge",
        "models/losses/hinge.py",
        "F.relu(1 + fake).mean(), real_logits",
        "F.relu(1 - fake).mean(), real_logits",
        "tests/models/losses/test_losses.py",
    ),
    Mutation(
        "losses: R1",
        "models/losses/r1.py",
        "return 0.5 * gamma * interval * penalty",
        "return gamma * interval * penalty",
        "tests/models/losses/test_losses.py",
    ),
    Mutation(
        "losses: path length",
        "models/losses/path_length.py",
        "return norms / math.sqrt(layers)",
        "return norms",
        "tests/models/losses/test_path_length.py",
    ),
    Mutation(
        "losses: the running mean of path lengths",
        "models/losses/path_length.py",
        "before = mean.detach() if isinstance(mean, Tensor) else mean",
        "before = 0.0",
        "tests/models/losses/test_path_length.py",
    ),
    Mutation(
        "modulation: demodulation without the style",
        "mixsyn_fast/layers/modulated.py",
        "F.linear(wide.square(), squares",
        "F.linear(torch.ones_like(wide), squares",
        "tests/models/stylegan2/test_networks.py",
    ),
    Mutation(
        "modulation: strides of the published form's weights",
        "mixsyn_fast/layers/modulated.py",
        "own.flatten(0, 1).contiguous()",
        "own.flatten(0, 1)",
        "tests/models/stylegan2/test_networks.py -k all_gradients",
    ),
    Mutation(
        "modulation: the style on the output side",
        "mixsyn_fast/layers/modulated.py",
        "    y = _spread(x * style[:, :, None, None], weight, up)\n    if up:",
        "    y = _spread(x * style.mean(1, keepdim=True)[:, :, None, None], weight, up)\n    if up:",
        "tests/models/stylegan2/test_networks.py -k scaling",
    ),
    Mutation(
        "modulation: a packed weight outlives an edit",
        "mixsyn_fast/layers/conv.py",
        'packed = derived(module, "prepacked", (weight,), turned)',
        'packed = derived(module, "prepacked", (None,), turned)',
        "tests/models/stylegan2/test_networks.py -k packed",
    ),
    Mutation(
        "resampling: the filter one pixel off",
        "mixsyn_fast/layers/resample.py",
        "stride=2, padding=1, groups=x.shape[1])\n\n\ndef downsample_2d",
        "stride=2, padding=2, output_padding=1, groups=x.shape[1])[:"
        ", :, : 2 * x.shape[2], : 2 * x.shape[3]]\n\n\ndef downsample_2d",
        "tests/models/stylegan2/test_networks.py",
    ),
    Mutation(
        "StyleGAN2: a conversion to RGB takes the w of the convolution before",
        "models/stylegan2/generator.py",
        "of(2 * i + 1)",
        "of(2 * i)",
        "tests/models/stylegan2/test_networks.py",
    ),
    Mutation(
        "StyleGAN2: statistics of neighbours",
        "models/stylegan2/discriminator.py",
        "x.reshape(group, -1, *x.shape[1:])",
        "x.reshape(-1, group, *x.shape[1:]).transpose(0, 1)",
        "tests/models/stylegan2/test_networks.py -k discriminator",
    ),
    Mutation(
        "training of StyleGAN2: a regularisation with an optimiser of its own",
        "models/unconditional.py",
        "every=every, shares=owner)",
        "every=every)",
        "tests/models/stylegan2/test_training.py",
    ),
    Mutation(
        "training of StyleGAN2: p moves within a step",
        "models/unconditional.py",
        "if step != self._step:",
        "if True:",
        "tests/models/stylegan2/test_training.py",
    ),
    Mutation(
        "StyleFusion in use: a fused code outlives a change",
        "models/stylefusion/model.py",
        "inputs = (first, second, codes[node])",
        "inputs = (first, second)",
        "tests/models/stylefusion/test_model.py",
    ),
    Mutation(
        "StyleFusion in use: an inner node keeps its global code",
        "models/stylefusion/model.py",
        'given |= dict.fromkeys(self.tree.within(node), self._code(value, f"changes: {node}"))',
        'given |= dict.fromkeys(self.tree.within(node)[1:] or [node], self._code(value, f"changes: {node}"))',
        "tests/models/stylefusion/test_model.py",
    ),
    Mutation(
        "heat maps: samples that repeat",
        "models/stylefusion/model.py",
        "np.random.MT19937([seed, i])",
        "np.random.MT19937([seed, i % 2])",
        "tests/models/stylefusion/test_model.py",
    ),
    Mutation(
        "evaluation of StyleFusion: M of one region for another",
        "models/stylefusion/evaluate.py",
        "mainly = correlations[node] > 0.5",
        "mainly = next(iter(correlations.values())) > 0.5",
        "tests/models/stylefusion/test_commands.py -k simpler",
    ),
    Mutation(
        "a run without the weights that it rests on",
        "models/training/loop.py",
        "        if needed:\n            raise",
        "        if not needed and init_from:\n            raise",
        "tests/models/stylefusion/test_command.py",
    ),
    Mutation(
        "augmentation: both rotations with p",
        "models/augmentation.py",
        "1 - (1 - p) ** 0.5 if",
        "p if",
        "tests/models/test_augmentation.py",
    ),
    Mutation(
        "augmentation: the order of the moves",
        "models/augmentation.py",
        "-(linear @ offset) - whole @ shift",
        "-(linear @ (offset + shift))",
        "tests/models/test_augmentation.py",
    ),
    Mutation(
        "augmentation: gradient of the sampling",
        "models/augmentation.py",
        "return _Spread.apply(grad, ctx.saved_tensors[0], ctx.size), None",
        "return _Sample.apply(grad, ctx.saved_tensors[0])[:, :, : ctx.size[2], : ctx.size[3]], None",
        "tests/models/test_augmentation.py",
    ),
    Mutation(
        "augmentation: no stripes from the finest detail",
        "models/augmentation.py",
        "return near * (9 / 16) - far * (1 / 16)",
        "return odd.narrow(dim, 0, count)",
        "tests/models/test_augmentation.py",
    ),
    Mutation(
        "augmentation: moved pixels are not resampled",
        "models/augmentation.py",
        "dealt.blit & ~dealt.geom, result, move_pixels",
        "dealt.blit & ~dealt.geom, result, resample",
        "tests/models/test_augmentation.py",
    ),
    Mutation(
        "augmentation: brightness before the luma flip",
        "models/augmentation.py",
        "(along * colors.brightness",
        "(contrast[:, None, None] * colors.brightness",
        "tests/models/test_augmentation.py",
    ),
    Mutation(
        "augmentation: p counts images",
        "models/augmentation.py",
        "change = images / self.config.speed",
        "change = logits / self.config.speed",
        "tests/models/test_augmentation.py",
    ),
    Mutation(
        "StyleGAN2's files: TensorFlow's enlarging convolutions are turned",
        "models/stylegan2/published.py",
        "return value.flip(2, 3) if turned else value",
        "return value",
        "tests/models/stylegan2/test_published.py",
    ),
    Mutation(
        "StyleGAN2's files: TensorFlow's style biases lack 1",
        "models/stylegan2/published.py",
        "lambda value: value + 1",
        "_same",
        "tests/models/stylegan2/test_published.py",
    ),
    Mutation(
        "StyleGAN2's files: the averaged network is taken",
        "models/stylegan2/published.py",
        'content.get("G_ema", content.get("G"))',
        'content.get("G", content.get("G_ema"))',
        "tests/models/stylegan2/test_published.py",
    ),
    Mutation(
        "StyleGAN2's files: another filter",
        "models/stylegan2/published.py",
        "_check_filter(name, found[name], 1.0, where)",
        "pass",
        "tests/models/stylegan2/test_published.py",
    ),
    Mutation(
        "StyleGAN2's files: names outside the list",
        "models/stylegan2/pickles.py",
        "if known not in _NAMES:",
        'if known not in _NAMES and module == "nowhere":',
        "tests/models/stylegan2/test_published.py",
    ),
    Mutation(
        "StyleGAN2's files: a function takes no state",
        "models/stylegan2/pickles.py",
        'raise pickle.UnpicklingError("a state for a function")',
        "self._function = state",
        "tests/models/stylegan2/test_published.py",
    ),
    Mutation(
        "StyleGAN2's files: byte order of arrays",
        "models/stylegan2/pickles.py",
        '{"<": "<", ">": ">"}.get(self.order, "=") + self.code',
        "self.code",
        "tests/models/stylegan2/test_published.py",
    ),
    Mutation(
        "losses: divergence",
        "models/losses/kld.py",
        "- mean.square() - log_variance.exp()",
        "- mean.square() + log_variance.exp()",
        "tests/models/losses/test_losses.py",
    ),
    Mutation(
        "losses: feature matching over scales",
        "models/losses/feature_matching.py",
        "return total / len(real)",
        "return total",
        "tests/models/losses/test_losses.py",
    ),
    Mutation(
        "metrics: diversity's unbiased variance",
        "models/metrics/diversity.py",
        "s * (2 / (count - 1))",
        "s * (2 / count)",
        "tests/models/metrics/test_diversity.py",
    ),
    Mutation(
        "options: the values of --config",
        "models/settings.py",
        "value = given.get(field.name, _default(field, missing))",
        "value = _default(field, missing)",
        "tests/models/test_settings.py -k required",
    ),
    Mutation(
        "options: fields that the data decides are no options",
        "models/settings.py",
        "type=Annotated[field.type, conf.Fixed, conf.Suppress]",
        "type=field.type",
        "tests/models/test_settings.py -k without_an_option",
    ),
    Mutation(
        "region map: soft maps by area",
        "mixsyn_fast/nearest.py",
        "return F.avg_pool3d(t, window) if volume else F.avg_pool2d(t, window)",
        "return resize_nearest(t, size)",
        "tests/test_region_map.py -k area",
    ),
    Mutation(
        "losses: the balance of regions keeps its mean",
        "models/losses/composition.py",
        "per_region = per_region * areas.sum() / (per_region * areas).sum().clamp(min=1)",
        "per_region = per_region * 1.0",
        "tests/models/losses/test_losses.py -k compositions_pixel",
    ),
    Mutation(
        "mixsyn: noise of an edit is fixed",
        "models/mixsyn/style.py",
        "noise = self._noise(x).expand(len(x), -1, -1, -1)",
        'noise = "device"',
        "tests/models/mixsyn/test_generators.py -k noise",
    ),
    Mutation(
        "mixsyn: what a window sees beyond the part that is made anew",
        "models/mixsyn/blocks.py",
        "_HALO = 3\n",
        "_HALO = 2\n",
        "tests/models/mixsyn/test_generators.py -k definition",
    ),
    Mutation(
        "mixsyn: statistics of a window are those of the whole",
        "models/mixsyn/style.py",
        "channel_moments(whole, noise, scale)",
        "channel_moments(box.of(whole).contiguous(), None if noise is None else box.of(noise).contiguous(), scale)",
        "tests/models/mixsyn/test_generators.py -k definition",
    ),
    Mutation(
        "mixsyn: a blend outside an edit of layers stays",
        "models/mixsyn/model.py",
        "drawn = np.where(made_anew, drawn, held.before.image)  # which may be a blend",
        "pass",
        "tests/models/mixsyn/test_model.py -k from_any_state",
    ),
    Mutation(
        "mixsyn: the map that a judge sees beside a composed image",
        "models/mixsyn/task.py",
        "labels = [own] * known + ([] if compositions is None else [compositions.detach().argmax(1).to(own.dtype)])",
        "labels = [own] * (known + (0 if compositions is None else len(compositions) // len(own)))",
        "tests/models/mixsyn/test_task.py -k beyond",
    ),
    Mutation(
        "mixsyn: random images against the sources of their regions",
        "models/mixsyn/evaluate.py",
        "there = (source >= 0) & (batch.regions.labels_at()[at] == strongest)",
        "there = source >= 0",
        "tests/models/mixsyn/test_evaluate.py -k held_against",
    ),
    Mutation(
        "pictures: kept pixels lie inside their regions alone",
        "models/pictures/own_size.py",
        "stays = (own_labels == labels) & torch.isin(labels, torch.tensor(sorted(keep), dtype=torch.int32))",
        "stays = torch.isin(labels, torch.tensor(sorted(keep), dtype=torch.int32))",
        "tests/models/pictures/test_own_size.py -k kept",
    ),
    Mutation(
        "options: a default that was there before",
        "models/mixsyn/diversity.py",
        "count: int = 12",
        "count: int = 13",
        "tests/models/test_options.py -k names_and_defaults",
    ),
    Mutation(
        "AVX2: a register block of more vectors than registers",
        "csrc/cpu/isa/avx2.h",
        "#define MIXSYN_PRODUCT_ROWS 6",
        "#define MIXSYN_PRODUCT_ROWS 8",
        "tests/build/test_disassembly.py -k 'inner_loops and avx2'",
    ),
    Mutation(
        "MixSyn: regions that a source lacks",
        "models/mixsyn/compositions.py",
        "torch.where(present.bool().gather(0, source), source, ABSENT)",
        "source",
        "tests/models/mixsyn/test_compositions.py",
    ),
    Mutation(
        "MixSyn: codes of absent regions",
        "models/mixsyn/compositions.py",
        "return torch.where(self.present.view(*self.source.shape, *(1,) * (codes.dim() - 2)), taken, 0)",
        "return taken",
        "tests/models/mixsyn/test_compositions.py",
    ),
    Mutation(
        "MixSyn: mean over a region",
        "models/mixsyn/style.py",
        "cover = cover / cover.sum(2, keepdim=True).clamp(min=1e-8)",
        "cover = cover / cover.shape[2]",
        "tests/models/mixsyn/test_generators.py",
    ),
    Mutation(
        "MixSyn: pooled kernels",
        "models/mixsyn/blocks.py",
        "across = F.pad(weight, (0, 1)) + F.pad(weight, (1, 0))",
        "across = F.pad(weight, (0, 1)) + F.pad(weight, (0, 1))",
        "tests/models/mixsyn/test_blocks.py",
    ),
    Mutation(
        "MixSyn: one spectral norm per encoder",
        "models/mixsyn/blocks.py",
        "stack = stack / self._sigma(stack, which)[:, None, None, None, None]",
        "stack = stack / self._sigma(stack, which).mean()",
        "tests/models/mixsyn/test_blocks.py",
    ),
    *(
        Mutation(f"choice: {what}", file, old, new, f"{tests} -k '{k}'")
        for what, file, old, new, tests, k in (
            (
                "the table is not asked",
                "mixsyn_fast/backend.py",
                'return "reference" if _loses(op, layout_of(x), x.dtype, torch.is_grad_enabled()) else "native"',
                'return "native"',
                "tests/test_backend.py",
                "follows_it or losing_kernel",
            ),
            (
                "native asks the table",
                "mixsyn_fast/backend.py",
                'if wanted == "auto" and x is not None and device_type',
                "if x is not None and device_type",
                "tests/test_backend.py",
                "losing_kernel",
            ),
            (
                "with gradients or without",
                "mixsyn_fast/backend.py",
                '"both" if gradients else "forward") in',
                '"both") in',
                "tests/test_backend.py",
                "losing_kernel",
            ),
            ("noise", "mixsyn_fast/backend.py", "1 / (1 + NOISE)", "1", "tests/test_backend.py", "losing_kernel"),
            (
                "layout",
                "mixsyn_fast/backend.py",
                "if not x.is_contiguous() and x.stride(1) == 1",
                "if x.stride(1) == 1",
                "tests/test_backend.py",
                "layouts_are",
            ),
            (
                "ratio",
                "benchmarks/winners.py",
                'seconds["reference"] / seconds["native"]',
                'seconds["native"] / seconds["reference"]',
                "tests/benchmarks/test_verdicts.py",
                "table",
            ),
        )
    ),
    *(
        Mutation(f"verdict: {what}", file, old, new, f"tests/benchmarks/test_verdicts.py -k '{k}'")
        for what, file, old, new, k in (
            ("noise", "mixsyn_fast/measure/clock.py", " and own.p20 <= other.p80", "", "noise"),
            ("compile judges", "benchmarks/tables.py", "if is_plain(name))", "if not is_ours(name))", "plain_form"),
            (
                "status",
                "benchmarks/run_ops.py",
                'return 1 if result["losses"] or result["wrong"] else 0',
                "return 0",
                "status_1",
            ),
        )
    ),
]


def copy_tree() -> None:
    """Copy the repository as git sees it, with what is not committed yet, and the extension."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    shutil.rmtree(TREE, ignore_errors=True)
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, TREE / name)
    # what the installation adds, so that the copy is imported and not the original; the extension is passed over as soon as
    # a source differs
    for path in (*(ROOT / "mixsyn_fast").glob("_C*.so"), *(ROOT / "mixsyn_fast").glob("_C.json")):
        shutil.copy2(path, TREE / "mixsyn_fast")
    (TREE / "mixsyn_fast" / "models").symlink_to("../models")
    (TREE / "mixsyn_fast" / "_csrc").symlink_to("../csrc")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the copy."""
    environ = {**os.environ, "PYTHONPATH": str(TREE), "MIXSYN_FAST_STRICT": "1", "MIXSYN_FAST_CACHE": str(WORK / "cache")}
    environ.pop("MIXSYN_FAST_CSRC", None)
    return subprocess.run([sys.executable, *command], cwd=TREE, env=environ, capture_output=True, text=True)


def pytest(arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tests in the copy until the first one fails."""
    return run("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *shlex.split(arguments))


def find(mutation: Mutation) -> Path:
    """Return the file that holds the text.

    Raises:
        ValueError: it stands nowhere, or more than once.
    """
    files = sorted({path for pattern in mutation.files.split() for path in TREE.glob(pattern)})
    counts = {path: path.read_text().count(mutation.old) for path in files}
    if sum(counts.values()) != 1:
        places = ", ".join(f"{count} in {path.relative_to(TREE)}" for path, count in counts.items() if count)
        raise ValueError(f"expected the text once in {mutation.files}, got {places or 'none'}: {mutation.old!r}")
    return next(path for path, count in counts.items() if count)


def compile_kernels(path: Path) -> str:
    """Compile what a source is part of; return the error, or nothing."""
    if path.suffix == ".py":
        return ""
    code = "from mixsyn_fast import extension; assert extension.ensure_loaded(), extension.failure()"
    if path.parent.name == "kernels":
        code = "from tests.emulation import emulated; emulated.build()"
    done = run("-c", code)
    return done.stderr[-2000:] if done.returncode else ""


def judge(mutation: Mutation) -> tuple[str, str]:
    """Break the place, see what happens, mend it; return the verdict (killed, survived, broken) and what shows it."""
    try:
        path = find(mutation)
    except ValueError as error:
        return "broken", str(error)
    text = path.read_text()
    try:
        path.write_text(text.replace(mutation.old, mutation.new))
        if error := compile_kernels(path):
            return "broken", f"does not compile: {error}"
        done = pytest(mutation.tests)
    finally:
        path.write_text(text)
    failed = re.search(r"^FAILED (.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if done.returncode == 1 and failed:
        return "killed", failed[1]
    if done.returncode == 0:
        return "survived", mutation.tests
    return "broken", (done.stdout + done.stderr)[-2000:]


def main() -> int:
    """Print one row per mutation; return 0 if all are killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; none for all")
    parser.add_argument("--unchecked", action="store_true", help="do not run the tests on the copy as it is")
    options = parser.parse_args()
    chosen = [m for m in MUTATIONS if not options.names or any(name in m.name for name in options.names)]
    WORK.mkdir(parents=True, exist_ok=True)
    lock = FileLock(WORK / "lock", timeout=0)
    lock.acquire()  # one run at a time: they share the copy
    copy_tree()
    if not options.unchecked:
        for arguments in sorted({m.tests for m in chosen}):
            if (done := pytest(arguments)).returncode:
                print(f"fails unbroken: {arguments}\n{done.stdout[-3000:]}{done.stderr[-1000:]}", flush=True)
                return 1
    verdicts = []
    for mutation in chosen:
        start = time.monotonic()
        verdict, shown = judge(mutation)
        verdicts.append(verdict)
        print(f"{verdict:8} {time.monotonic() - start:5.0f} s  {mutation.name:55} {shown}", flush=True)
    print(f"{verdicts.count('killed')} of {len(verdicts)} killed")
    return int(verdicts.count("killed") != len(verdicts))


if __name__ == "__main__":
    sys.exit(main())
