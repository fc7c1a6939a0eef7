"""The inner loops of the CPU kernels, for every instruction set: no calls, no spills, no elements, vectors of full width."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from mixsyn_fast import _build
from tests.build import disassembly

class Allowed(NamedTuple):
    """An exception: complaints of these kinds in functions that the expression finds, and why they may stay."""

    isas: str
    function: str
    kinds: str
    reason: str


# of g++ 12's code
ALLOWED = [
    Allowed("avx512 avx2 baseline neon", "latent_blend_", "element spill", "gathers logits that lie a group apart, few in all"),
    Allowed("avx512 avx2 baseline neon", "pool_backward", "element narrow", "adds the gradient of the maps transposed, if it comes"),
    Allowed("avx512 avx2 baseline", "(stats|reduce)_tiles<Half", "element spill", "one float16 of noise a turn, converted alone"),
    Allowed("avx2", "reduce_tiles<(float|double)", "spill", "one vector more than there are registers"),
    Allowed("avx2", "roi_pool_last<double", "spill", "one vector more than there are registers"),
    Allowed("baseline", "roi_pool_(first|last)<double", "element spill", "SSE2 has no choice between integers of 64 bits"),
    Allowed("baseline", "<Half", "spill", "float16 by integers takes more than sixteen registers beside the sums"),
]


def needs(isa: str) -> None:
    """Skip where the code of an instruction set cannot be looked at."""
    if reason := disassembly.missing(isa):
        pytest.skip(reason)


def judge(loop: disassembly.Loop, used: set[Allowed]) -> list[disassembly.Complaint]:
    """Complaints that count: in register blocks all of them, elsewhere those of what every turn of the loop runs.

    What only some turns run is a row's tail, a region's change, a sum once in a while. Exceptions are added to ``used``.
    """
    left = list(loop.complaints)
    if not re.search(r"(product|outer)_block", loop.function):
        left = [c for c in left if c.kind == "call" or c.always and c.kind != "reload"]
    for allowed in ALLOWED:
        if loop.isa in allowed.isas.split() and re.search(allowed.function, loop.function):
            covered = [c for c in left if c.kind in allowed.kinds.split()]
            if covered:
                used.add(allowed)
            left = [c for c in left if c not in covered]
    return left


@pytest.mark.parametrize("isa", disassembly.WIDTHS)
def test_inner_loops(isa: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every exception is needed, too. Of other compilers' code only the register blocks count, and calls."""
    needs(isa)
    config = disassembly.configuration(isa)
    if isa not in config.isas:
        pytest.skip(f"{config.compiler[0]} does not compile for {isa}")
    loops = disassembly.loops_of_build(config, isa)
    assert len(loops) > 100, "the kernels were not found"
    assert {"product_block", "outer_block"} <= {m[1] for loop in loops if (m := re.search(r"(\w+_block)<", loop.function))}
    used: set[Allowed] = set()
    bad = [(loop, left) for loop in loops if (left := judge(loop, used))]
    if not re.match(r"\S*g\+\+ .*\) 12\.", config.compiler_version):
        bad = [(loop, left) for loop, left in bad if "_block<" in loop.function or any(c.kind == "call" for c in left)]
        used |= set(ALLOWED)
    with capsys.disabled():
        print(f"\n  {isa}: {len(loops)} inner loops with packed arithmetic")
    if bad:
        pytest.fail("\n\n".join(str(loop) for loop, _ in bad), pytrace=False)
    assert not [allowed for allowed in ALLOWED if isa in allowed.isas.split() and allowed not in used], "no longer needed"


GOOD = """
typedef float V __attribute__((vector_size(WIDTH)));
void kernel(const float* x, const float* y, float* z, long n) {
  for (long i = 0; i < n; i += sizeof(V) / 4) {
    V a, b;
    __builtin_memcpy(&a, x + i, sizeof(V));
    __builtin_memcpy(&b, y + i, sizeof(V));
    a = a * b + 1.0f;
    a = a > b ? a : b;
    __builtin_memcpy(z + i, &a, sizeof(V));
  }
}
"""
# 64-byte vectors, of which the instruction set has only halves
TAKEN_APART = """
typedef float V __attribute__((vector_size(64)));
void kernel(const float* x, const float* y, float* z, long n) {
  V best = {}, sum = {};
  for (long i = 0; i < n; i += 16) {
    V a;
    __builtin_memcpy(&a, x + i, 64);
    sum += a > best ? a * y[i] : best;
    for (int l = 0; l < 16; ++l) best[l] = a[l] > best[l] ? a[l] : best[l];
  }
  sum += best;
  __builtin_memcpy(z, &sum, 64);
}
"""
CALL = """
extern float other(float);
typedef float V __attribute__((vector_size(WIDTH)));
void kernel(const float* x, const float* y, float* z, long n) {
  V sum = {};
  for (long i = 0; i < n; i += sizeof(V) / 4) {
    V a;
    __builtin_memcpy(&a, x + i, sizeof(V));
    sum += a * other(y[i]);
  }
  __builtin_memcpy(z, &sum, sizeof(V));
}
"""
# a register block of more sums than there are registers
SPILL = """
typedef float V __attribute__((vector_size(WIDTH)));
void kernel(const float* x, const float* y, float* z, long n) {
  V sum[40] = {};
  for (long i = 0; i < n; ++i) {
    V a;
    __builtin_memcpy(&a, x, sizeof(V));
    x += sizeof(V) / 4;
#pragma GCC unroll 40
    for (int r = 0; r < 40; ++r) sum[r] += a * y[r];
    y += 40;
  }
  __builtin_memcpy(z, sum, sizeof(sum));
}
"""
ELEMENTS = """
typedef float V __attribute__((vector_size(WIDTH)));
void kernel(const float* x, const int* at, float* z, long n) {
  for (long i = 0; i < n; i += sizeof(V) / 4) {
    V a;
#pragma GCC unroll 16
    for (int l = 0; l < sizeof(V) / 4; ++l) a[l] = x[at[i + l]];
    a = a * 2.0f + 1.0f;
    __builtin_memcpy(z + i, &a, sizeof(V));
  }
}
"""
NARROW = GOOD.replace("WIDTH", "16")
SCALAR = GOOD.replace("a = a > b ? a : b;", "z[-i] = x[i] / y[i];")
FLAGS = {"avx512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq"], "avx2": ["-mavx2", "-mfma"], "baseline": [], "neon": []}


@pytest.mark.parametrize(
    "isa, source, kinds",
    [
        *[(isa, GOOD, set()) for isa in FLAGS],
        ("avx2", TAKEN_APART, {"spill", "scalar"}),
        *[(isa, CALL, {"call", "spill"}) for isa in FLAGS],
        *[(isa, SPILL, {"spill"}) for isa in FLAGS],
        *[(isa, ELEMENTS, {"element"}) for isa in FLAGS],
        *[(isa, SCALAR, {"scalar"}) for isa in FLAGS],
        ("avx512", NARROW, {"narrow"}),
        ("avx2", NARROW, {"narrow"}),
    ],
)
def test_a_bad_kernel_is_found(isa: str, source: str, kinds: set[str], tmp_path: Path) -> None:
    """Every kind is found where it is, and nothing in a good loop."""
    needs(isa)
    compiler = disassembly.configuration(isa).compiler
    file = tmp_path / "kernel.cpp"
    file.write_text(source.replace("WIDTH", str(disassembly.WIDTHS[isa])))
    command = [
        *compiler,
        "-O3",
        "-w",
        "-fno-tree-loop-vectorize",
        *FLAGS[isa],
        "-c",
        str(file),
        "-o",
        str(tmp_path / "kernel.o"),
    ]
    subprocess.run(command, check=True)
    loops = disassembly.loops(disassembly.parse(disassembly.disassemble(tmp_path / "kernel.o", isa)), isa)
    assert loops
    found = {c.kind for loop in loops for c in loop.complaints}
    assert found >= kinds if kinds else not found, "\n".join(map(str, loops))


ON_ARM = """
0000000000000000 <_Z6kernelv>:
   0:	ldr	q17, [sp, #128]
   4:	fmla	v17.4s, v1.4s, v16.s[0]
   8:	str	q17, [sp, #128]
   c:	ldr	q2, [sp, #160]
  10:	cbz	x0, 18 <_Z6kernelv+0x18>
  14:	bl	0 <_Z5otherv>
  18:	mov	v3.s[1], v17.s[0]
  1c:	fadd	s0, s0, s1
  20:	mov	x1, #0x0                   	// #0
  24:	b.ne	0 <_Z6kernelv>  // b.any
  28:	ret
"""
LISTING = """
file.o:     file format elf64-x86-64

0000000000000010 <_Z6kernelv>:
      10:	xor    eax,eax
      12:	vmovups ymm0,YMMWORD PTR [rsp+0x40]
      16:	vmulps ymm1,ymm0,YMMWORD PTR [rsp+0x60]
      1a:	vmovups YMMWORD PTR [rsp+0x40],ymm1
      1e:	test   rcx,rcx
      20:	je     28 <_Z6kernelv+0x18>
      22:	bnd call 0 <_Z5otherv>
      28:	vdivss xmm2,xmm2,xmm3
      2c:	cmp    rax,rdx
      30:	jne    12 <_Z6kernelv+0x2>
      32:	add    rdi,0x1
      34:	cmp    rdi,rsi
      38:	jl     10 <_Z6kernelv>
      3a:	vpextrd eax,xmm0,0x2
      3c:	ret
"""


def test_the_listing_is_read() -> None:
    """The inner of two loops, what it always runs, its spill told from a reload."""
    (loop,) = disassembly.loops(disassembly.parse(LISTING), "avx2")
    assert loop.function == "kernel" if shutil.which("c++filt") else loop.function
    assert [i.address for i in loop.body] == [0x12, 0x16, 0x1A, 0x1E, 0x20, 0x22, 0x28, 0x2C, 0x30]
    assert Counter(map(str, loop.complaints)) == {"spill": 2, "reload": 1, "call?": 1, "scalar": 1}
    assert [hex(c.instruction.address) for c in loop.complaints] == ["0x12", "0x16", "0x1a", "0x22", "0x28"]


def test_the_listing_of_arm_is_read() -> None:
    (loop,) = disassembly.loops(disassembly.parse(ON_ARM), "neon")
    assert loop.body[-1].address == 0x24 and loop.body[-2].operands == "x1, #0x0"
    assert Counter(map(str, loop.complaints)) == {"spill": 2, "reload": 1, "call?": 1, "element": 1, "scalar": 1}
