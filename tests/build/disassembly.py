"""What the compiler made of the CPU kernels: their innermost loops with packed arithmetic, read from objdump.

``python -m tests.build.disassembly [OP] [ISA] [--all] [--summary] [--function REGEX]`` compiles csrc/cpu/OP.cpp (all of
them) for ISA (all of them) with the flags of the build and prints every loop of which there is something to complain, with
its function and instructions; CXX chooses the compiler. Status 1 where there are complaints.

A loop is a natural one (a jump to a block that dominates it), innermost when its body holds no other. Complaints:

call     leaves the loop's registers to somebody else
spill    a vector (or a mask) goes to the stack, or comes from where the loop has put it
reload   a vector that the loop does not change comes from the stack: a constant in memory, harmless but in register blocks
element  a vector is made of scalars, or taken apart into them
scalar   arithmetic of one element beside that of vectors
narrow   arithmetic on vectors narrower than the machine's

A question mark stands behind what not every turn of the loop runs (the tail of a row, most often).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from mixsyn_fast import _build
from tests.emulation import arm

REPOSITORY = Path(__file__).resolve().parents[2]
OBJECTS = REPOSITORY / "build" / "disassembly"
WIDTHS = {"avx512": 64, "avx2": 32, "baseline": 16, "neon": 16}  # bytes of a vector
ARM = "" if platform.machine() == "aarch64" else "aarch64-linux-gnu-"  # begins the names of the tools for 64-bit Arm
KINDS = ("call", "spill", "reload", "element", "scalar", "narrow")


# ------------------------------------------------------------------------------------------------ reading objdump


@dataclass(frozen=True)
class Instruction:
    """One line of a disassembly, on x86 in Intel's syntax."""

    address: int
    name: str
    operands: str

    def __str__(self) -> str:
        """Return the line again."""
        return f"{self.address:8x}:  {self.name:14} {self.operands}".rstrip()

    @property
    def target(self) -> int | None:
        """Where a jump goes; None for what is no jump, or an indirect one."""
        if not _JUMP.match(self.name):
            return None
        found = re.search(r"(?:^|, *)([0-9a-f]+)$", self.operands)
        return int(found[1], 16) if found else None

    @property
    def ends_block(self) -> bool:
        """Whether the next instruction may not be the next to run."""
        return bool(_JUMP.match(self.name) or _NEVER_ON.match(self.name))

    @property
    def falls_through(self) -> bool:
        """Whether the next instruction may be the next to run."""
        return not _NEVER_ON.match(self.name)


_JUMP = re.compile(r"(?:j\w+|b|b\.\w+|cbn?z|tbn?z)$")
_NEVER_ON = re.compile(r"(?:jmp|ret\w*|ud2|hlt|b|br|brk|udf)$")


@dataclass
class Function:
    """A symbol and its instructions."""

    symbol: str
    instructions: list[Instruction] = field(default_factory=list)


_SYMBOL = re.compile(r"^[0-9a-f]+ <(.+)>:$")
_LINE = re.compile(
    r"^ *([0-9a-f]+):\t(?:(?:bnd|notrack|lock|repz?|repnz|data16|cs) +)*(\S+)(?:\s+(.*?))?(?:\s+<.*|\s{2,}#.*|\s+//.*)?$"
)


def parse(text: str, wanted: str = "") -> Iterator[Function]:
    """Read ``objdump -d``: the functions whose symbol contains ``wanted``."""
    function: Function | None = None
    for line in text.splitlines():
        if line.endswith(">:") and (symbol := _SYMBOL.match(line)):
            if function is not None:
                yield function
            function = Function(symbol[1]) if wanted in symbol[1] else None
        elif function is not None and (found := _LINE.match(line)):
            function.instructions.append(Instruction(int(found[1], 16), found[2], found[3] or ""))
    if function is not None:
        yield function


def missing(isa: str) -> str | None:
    """Return why the code of an instruction set cannot be looked at here; None when it can."""
    if isa == "neon":
        tools = [f"{ARM}g++", f"{ARM}objdump"]
    elif platform.machine() == "x86_64":
        tools = ["objdump"]
    else:
        return f"this is {platform.machine()}"
    lacking = [tool for tool in tools if shutil.which(tool) is None]
    return f"no {lacking[0]} (apt install {'g++-aarch64-linux-gnu' if lacking[0] != 'objdump' else 'binutils'})" if lacking else None


def disassemble(file: Path, isa: str) -> str:
    """Return what objdump says of an object or a shared object."""
    command = [f"{ARM}objdump"] if isa == "neon" else ["objdump", "-M", "intel"]
    return subprocess.run([*command, "-d", "--no-show-raw-insn", str(file)], capture_output=True, text=True, check=True).stdout


def demangled(symbols: Sequence[str]) -> list[str]:
    """Names as the source has them, without the parts that all share and without the arguments."""
    if shutil.which("c++filt"):
        symbols = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True).stdout.splitlines()
    names = []
    for name in symbols:
        name = re.sub(r"mixsyn_fast::cpu::|c10::|\(anonymous namespace\)::|\((?:\w+::)*\w+\)(?=\d)", "", name)
        depth = 0
        for n, letter in enumerate(name):
            depth += (letter == "<") - (letter == ">")
            if letter == "(" and depth == 0:
                name = name[:n]
                break
        names.append(re.sub(r"^(?:static )?\w+ (?=\w+::)", "", name))
    return names


# ------------------------------------------------------------------------------------------------ loops


def innermost_loops(function: Function) -> list[tuple[list[Instruction], set[int]]]:
    """Return the bodies of the natural loops that hold no other, and the addresses that every turn runs."""
    code = function.instructions
    if not any(i.target is not None and code[0].address <= i.target <= i.address for i in code):
        return []
    place = {i.address: n for n, i in enumerate(code)}
    starts = {0}
    for n, i in enumerate(code):
        if i.ends_block:
            starts.add(n + 1)
            if i.target in place:
                starts.add(place[i.target])
    starts.discard(len(code))
    begins = sorted(starts)
    block_at = {n: b for b, n in enumerate(begins)}
    ends = [*begins[1:], len(code)]
    after: list[list[int]] = []
    for b, end in enumerate(ends):
        last = code[end - 1]
        follow = [b + 1] if last.falls_through and end < len(code) else []
        if last.target in place:
            follow.append(block_at[place[last.target]])
        after.append(follow)

    # dominators by Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm"
    order: list[int] = []
    seen = [False] * len(begins)
    seen[0] = True
    stack = [(0, iter(after[0]))]
    while stack:
        block, follow_on = stack[-1]
        for nxt in follow_on:
            if not seen[nxt]:
                seen[nxt] = True
                stack.append((nxt, iter(after[nxt])))
                break
        else:
            order.append(block)
            stack.pop()
    number = {block: n for n, block in enumerate(order)}
    before: list[list[int]] = [[] for _ in begins]
    for block in order:
        for nxt in after[block]:
            before[nxt].append(block)
    dominator: dict[int, int] = {0: 0}
    changed = True
    while changed:
        changed = False
        for block in reversed(order[:-1]):
            new = -1
            for other in before[block]:
                if other not in dominator:
                    continue
                if new < 0:
                    new = other
                    continue
                a, b = other, new
                while a != b:
                    while number[a] < number[b]:
                        a = dominator[a]
                    while number[b] < number[a]:
                        b = dominator[b]
                new = a
            if dominator.get(block) != new:
                dominator[block] = new
                changed = True

    def dominates(a: int, b: int) -> bool:
        while number[b] < number[a]:
            b = dominator[b]
        return a == b

    bodies: dict[int, set[int]] = {}
    latches: dict[int, list[int]] = {}
    for block in order:
        for head in after[block]:
            if not dominates(head, block):
                continue
            body = bodies.setdefault(head, {head})
            latches.setdefault(head, []).append(block)
            todo = [block]
            while todo:
                inside = todo.pop()
                if inside not in body:
                    body.add(inside)
                    todo += before[inside]
    found = []
    for head, body in bodies.items():
        if any(other in body for other in bodies if other != head):
            continue
        code_of = {b: code[begins[b] : ends[b]] for b in sorted(body)}
        always = [b for b in body if all(dominates(b, latch) for latch in latches[head])]
        found.append(([i for b in code_of for i in code_of[b]], {i.address for b in always for i in code_of[b]}))
    return found


# ------------------------------------------------------------------------------------------------ complaints

_FLOAT = r"v?(?:add|sub|mul|div|min|max|sqrt|addsub|hadd|hsub|cmp\w*)p[sd]|vf\w+p[sd]|v(?:range|reduce|scalef|rndscale)p[sd]"
_ARITHMETIC = re.compile(
    rf"(?:{_FLOAT}|v?ps[lr][la][dq]|v?p(?:cmp(?:eq|gt)|max[su]|min[su])[bwdq]|vpcmp\w+|vcvtph2ps|vcvtps2ph)$"
)
_WIDE = re.compile(rf"(?:{_FLOAT}|v?ps[lr][la]d)$")  # bytes and half words may lie in less than a vector
_SCALAR = re.compile(r"(?:v?(?:add|sub|mul|div|min|max|sqrt|cmp\w*)s[sd]|vf\w+s[sd]|v?u?comis[sd])$")
_ELEMENT = re.compile(r"v?(?:pinsr[bwdq]|pextr[bwdq]|insertps|extractps)$")
_FROM_GENERAL = re.compile(r"xmm\d+,(?:[re]\w\w|r\d+d?)$")
_REGISTER = re.compile(r"\b([xyz])mm\d+\b")
_BYTES = {"x": 16, "y": 32, "z": 64}
_SIZES = {"BYTE": 1, "WORD": 2, "DWORD": 4, "QWORD": 8, "XMMWORD": 16, "YMMWORD": 32, "ZMMWORD": 64}
_SIZES_ON_ARM = {"b": 1, "h": 2, "s": 4, "w": 4, "d": 8, "x": 8, "q": 16, "v": 16}


@dataclass(frozen=True)
class Complaint:
    """Of one instruction."""

    kind: str
    instruction: Instruction
    always: bool  # every turn of the loop runs it

    def __str__(self) -> str:
        """Return the kind, with a question mark behind what does not always run."""
        return self.kind + ("" if self.always else "?")


@dataclass(frozen=True)
class Loop:
    """An innermost loop with packed arithmetic, and what there is to complain of."""

    function: str
    isa: str
    body: tuple[Instruction, ...]
    complaints: tuple[Complaint, ...]

    def __str__(self) -> str:
        """Return function, kinds and instructions, the offending ones marked."""
        marks = {c.instruction.address: str(c) for c in self.complaints}
        count = Counter(map(str, self.complaints))
        words = ", ".join(f"{n} {kind}" for kind, n in count.items()) or "nothing"
        lines = [f"{self.function}, {len(self.body)} instructions: {words}"]
        lines += [f"  {marks.get(i.address, ''):9}{i}" for i in self.body]
        return "\n".join(lines)


def _width(operands: str) -> int:
    return max((_BYTES[name] for name in _REGISTER.findall(operands)), default=0)


@dataclass(frozen=True)
class Place:
    """Bytes on the stack, as an instruction names them; an index may lead anywhere."""

    base: str
    begin: int
    end: int
    indexed: bool

    def meets(self, other: Place) -> bool:
        """Whether both may name the same byte."""
        if self.base != other.base or self.indexed or other.indexed:
            return True
        return self.begin < other.end and other.begin < self.end


def _place(instruction: Instruction, frame: bool) -> Place | None:
    found = re.search(r"(\w+) (?:PTR|BCST) \[(rsp|rbp)(.*?)\]", instruction.operands)
    if not found or found[2] == "rbp" and not frame:
        return None
    size, base, rest = found.groups()
    offset = re.search(r"([+-])0x([0-9a-f]+)$", rest)
    begin = int(offset[1] + offset[2], 16) if offset else 0
    return Place(
        base, begin, begin + _SIZES.get(size, 64), bool(re.search(r"[a-z]", rest.replace("0x", ""))) and "*" in rest
    )


def _stores(instruction: Instruction) -> bool:
    first = instruction.operands.split(",")[0]
    return "[" in first and not re.match(r"cmp|test|push|prefetch|call|j|nop|bt$", instruction.name)


def complaints(body: Sequence[Instruction], always: set[int], frame: bool, width: int) -> Iterator[Complaint]:
    """Judge one loop. ``frame``: rbp is the frame's pointer in this function; ``width``: bytes of a vector."""
    written = [place for i in body if _stores(i) and (place := _place(i, frame))]
    # registers whose elements the loop makes: another may hold a pointer, for which there was no other place
    vectors = {
        i.operands.split(",")[0] for i in body if not re.match(r"v?mov[dq]$", i.name) or not _FROM_GENERAL.match(i.operands)
    }
    inserted: set[str] = set()  # registers that were written last by a masked broadcast
    scalars: set[str] = set()  # registers that hold one element, as far as straight reading tells
    for i in body:
        name, operands = i.name, i.operands
        registers = re.findall(r"\b[xyz]mm\d+\b", operands)
        kind = ""
        if name.startswith("call"):
            kind = "call"
        elif (registers or re.search(r"\bk[1-7]\b", operands)) and (place := _place(i, frame)):
            kind = "spill" if _stores(i) or any(place.meets(other) for other in written) else "reload"
        elif _ELEMENT.match(name):
            kind = "element"
        elif re.match(r"vp?broadcast\w+$", name) and "{k" in operands:  # so AVX-512 inserts an element, after another
            kind = "element" if registers[0] in inserted else ""
        elif re.match(r"v?mov[dq]$", name) and re.match(r"(?:[re]\w\w|r\d+d?),xmm", operands):
            kind = "element" if registers[0] in vectors else ""
        elif re.match(r"v?p?unpckl\w+$|v?movlhps$", name) and "ymm" not in operands and "zmm" not in operands:
            sources = registers[1:] if name.startswith("v") else registers
            broadcast = len(sources) == 2 and sources[0] == sources[1]
            if not broadcast and any(r in scalars for r in sources):
                kind = "element"
        elif re.match(r"v?movhp[sd]$", name):
            kind = "element"
        elif _SCALAR.match(name):
            kind = "scalar"
        elif _WIDE.match(name) and 0 < _width(operands) < width:
            kind = "narrow"
        if kind:
            yield Complaint(kind, i, i.address in always)
        if registers and operands.startswith(registers[0]):
            (inserted.add if re.match(r"vp?broadcast", name) and "{k" in operands else inserted.discard)(registers[0])
        if registers and operands.startswith("xmm"):
            one = re.match(r"v?movs[sd]$|v?cvt\w+2s[sd]$", name) or _SCALAR.match(name)
            one = one or re.match(r"v?mov[dq]$", name) and re.match(r"xmm\d+,(?:[re]\w\w\b|r\d+d?\b|DWORD)", operands)
            (scalars.add if one else scalars.discard)(registers[0])


_ARM_ARITHMETIC = re.compile(r"f(?:n?m(?:ul|la|ls)|add|sub|div|abd|sqrt|cm\w+|max|min|maxnm|minnm|cvtl|cvtn)2?$|[su]?shll?2?$|ushr$")
_ARM_SCALAR = re.compile(r"f(?:n?mul|n?madd|n?msub|add|sub|div|sqrt|cmpe?|max|min|maxnm|minnm)$")


def complaints_on_arm(body: Sequence[Instruction], always: set[int], frame: bool, width: int) -> Iterator[Complaint]:
    """Judge one loop of 64-bit Arm, as :func:`complaints` does; a vector's halves may be exchanged."""

    def place(i: Instruction) -> Place | None:
        found = re.match(r"(?:ld|st)\w+$", i.name) and re.search(r"\[(sp|x29)(?:, #(-?\d+)|(,.*))?\]", i.operands)
        if not found or found[1] == "x29" and not frame:
            return None
        size = _SIZES_ON_ARM.get(i.operands.lstrip("{")[0], 16) * (2 if i.name.endswith("p") else 1)
        begin = int(found[2] or 0)
        return Place(found[1], begin, begin + size, bool(found[3]))

    written = [p for i in body if i.name.startswith("st") and (p := place(i))]
    for i in body:
        name, operands = i.name, i.operands
        kind = ""
        if name in ("bl", "blr"):
            kind = "call"
        elif re.match(r"[{]?[qv]\d", operands) and (p := place(i)):
            kind = "spill" if name.startswith("st") or any(p.meets(other) for other in written) else "reload"
        elif name in ("ins", "umov", "smov") or name == "mov" and re.search(r"v\d+\.[bhs]\[", operands):
            kind = "element"
        elif re.match(r"(?:ld|st)1$", name) and re.search(r"\}\[\d+\]", operands):
            kind = "element"
        elif _ARM_SCALAR.match(name) and re.match(r"[hsd]\d", operands):
            kind = "scalar"
        elif re.match(r"f(?!cvt)", name) and _ARM_ARITHMETIC.match(name) and re.match(r"v\d+\.2s", operands):
            kind = "narrow"
        if kind:
            yield Complaint(kind, i, i.address in always)


def _packed(i: Instruction, isa: str) -> bool:
    if isa == "neon":
        return bool(_ARM_ARITHMETIC.match(i.name)) and bool(re.match(r"v\d+\.(?:16b|8h|4s|2d)", i.operands))
    return bool(_ARITHMETIC.match(i.name)) and "mm" in i.operands


def loops(functions: Iterable[Function], isa: str) -> list[Loop]:
    """Return the innermost loops that hold packed arithmetic."""
    found = []
    judge = complaints_on_arm if isa == "neon" else complaints
    for function in functions:
        code = function.instructions
        if not any(_packed(i, isa) for i in code):
            continue
        frame = any(i.name == "mov" and i.operands in ("rbp,rsp", "x29, sp") for i in code[:16])
        for body, always in innermost_loops(function):
            if any(_packed(i, isa) for i in body):
                found.append(Loop(function.symbol, isa, tuple(body), tuple(judge(body, always, frame, WIDTHS[isa]))))
    names = demangled([loop.function for loop in found])
    return [replace(loop, function=name) for loop, name in zip(found, names, strict=True)]


# ------------------------------------------------------------------------------------------------ compiling


def configuration(isa: str = "") -> _build.Config:
    """What setup.py would build here, without CUDA; for ``neon`` by the cross compiler."""
    environ = {**os.environ, "FORCE_CPU": "1", "MIXSYN_FAST_SANITIZE": ""}
    if isa == "neon" and ARM:
        environ["CXX"] = f"{ARM}g++"
    return _build.configure(jit=False, environ=environ)


def compile_unit(config: _build.Config, unit: _build.Unit) -> Path:
    """Compile one CPU kernel; objects are kept by the content of all sources below cpu/, the command and the compiler."""
    digest = hashlib.sha256(config.compiler_version.encode())
    for path in sorted((config.csrc / "cpu").rglob("*")):
        if path.is_file() and (path.suffix != ".cpp" or path == config.csrc / unit.source):
            digest.update(path.read_bytes())
    digest.update("\0".join(_build.compile_command(config, unit, Path("object"))).encode())
    folder = OBJECTS / str(unit).replace("/", "-").replace(" ", "-")
    target = folder / f"{digest.hexdigest()[:16]}.o"
    if not target.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        private = folder / "new.o"
        done = subprocess.run(_build.compile_command(config, unit, private), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{unit}:\n{done.stderr}")
        private.rename(target)
    return target


def loops_of_units(config: _build.Config, units: Sequence[_build.Unit]) -> list[Loop]:
    """Compile, two at a time, and read what came out."""

    def one(unit: _build.Unit) -> list[Loop]:
        assert unit.isa is not None
        return loops(parse(disassemble(compile_unit(config, unit), unit.isa)), unit.isa)

    with ThreadPoolExecutor(2) as pool:
        return [loop for some in pool.map(one, units) for loop in some]


def loops_of_build(config: _build.Config, isa: str) -> list[Loop]:
    """Return the loops of all kernels for ``isa``: of what was built from these very sources, else of new objects.

    That is what setup.py made, and for 64-bit Arm the program that the tests of the ops run (tests/emulation/arm.py).
    """
    wanted = f"3cpu{len(isa)}{isa}"
    if isa == "neon" and ARM and config.csrc == arm.CSRC:
        return loops(parse(disassemble(arm.build(config), isa), wanted), isa)
    places = (REPOSITORY / "mixsyn_fast").glob(f"{Path(_build.MANIFEST).stem}*.so")
    manifest = _build.read_manifest(REPOSITORY / "mixsyn_fast" / _build.MANIFEST) or {}
    same = {"recipe": _build.recipe(config.sources), "compiler": config.compiler_version, "isas": list(config.isas)}
    for library in places:
        if library.name == manifest.get("library") and all(manifest.get(name) == fact for name, fact in same.items()):
            return loops(parse(disassemble(library, isa), wanted), isa)
    return loops_of_units(config, kernel_units(config, isa=isa))


def kernel_units(config: _build.Config, op: str = "", isa: str = "") -> list[_build.Unit]:
    """Return the CPU kernels of an op (all) for an instruction set (all)."""
    units = [unit for unit in _build.translation_units(config) if unit.isa]
    return [u for u in units if op in ("", u.source.stem) and isa in ("", u.isa)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the loops."""
    parser = argparse.ArgumentParser(prog="python -m tests.build.disassembly", description=__doc__.split("\n")[0])
    parser.add_argument("op", nargs="?", default="", help="csrc/cpu/OP.cpp; all without it, or with .")
    parser.add_argument("isa", nargs="?", default="", help="avx512, avx2, baseline, or neon (cross-compiled); all of this machine's without it")
    parser.add_argument("--all", action="store_true", help="print loops without complaints, too")
    parser.add_argument("--function", default="", help="only functions whose name this regular expression finds")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=[k for k in KINDS if k != "reload"], help="of complaints"
    )
    parser.add_argument("--summary", action="store_true", help="one line per loop")
    options = parser.parse_args(arguments)
    config = configuration(options.isa)
    units = kernel_units(config, options.op.removesuffix(".").removesuffix(".cpp"), options.isa)
    if not units:
        parser.error(f"no such kernel; there are {', '.join(sorted(map(str, kernel_units(config))))}")
    found = [loop for loop in loops_of_units(config, units) if re.search(options.function, loop.function)]
    bad = [loop for loop in found if any(c.kind in options.kinds for c in loop.complaints)]
    for loop in found if options.all else bad:
        print(str(loop).split("\n")[0] if options.summary else f"{loop}\n")
    print(f"{len(bad)} of {len(found)} loops with packed arithmetic")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
