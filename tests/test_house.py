"""The house has floors: every import points down, or sideways within one room. No import is left out, wherever it stands."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the ground up. A floor is a list of rooms; a room is a list of modules, a folder among them stands for all its files.
# A file may import what is on a lower floor and what is in its own room. CONTRIBUTING.md draws the same picture.
FLOORS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (
        ("mixsyn_fast._build",),
        ("mixsyn_fast.progress",),
        ("mixsyn_fast.commands",),
        ("mixsyn_fast.writing",),
        ("mixsyn_fast.reading",),
        ("mixsyn_fast.machine",),
        ("mixsyn_fast.nearest",),
    ),
    (("mixsyn_fast.extension",),),
    (("mixsyn_fast.backend",),),
    (("mixsyn_fast.ops",),),
    (("mixsyn_fast.region_map",), ("mixsyn_fast.latent_map",), ("mixsyn_fast.runtime",)),
    (("mixsyn_fast.layers",),),
    (("mixsyn_fast.accelerate",),),
    (("mixsyn_fast",),),  # the public names
    (("mixsyn_fast.measure",),),
    (("mixsyn_fast.doctor",),),
    (
        tuple(
            f"mixsyn_fast.models.{name}"
            for name in ("settings", "sheets", "checkpoints", "model_file", "memory", "blocks", "plain")
        ),
    ),
    (("mixsyn_fast.models.feature_networks",), ("mixsyn_fast.models.data",)),
    (("mixsyn_fast.models.losses",), ("mixsyn_fast.models.metrics",), ("mixsyn_fast.models.augmentation",)),
    (
        tuple(f"mixsyn_fast.models.{name}" for name in ("spade", "clade", "sean", "stylegan2", "discriminators")),
        ("mixsyn_fast.models.face_parser",),
    ),
    (("mixsyn_fast.models",),),  # the public names
    (("mixsyn_fast.models.pictures",),),
    (("mixsyn_fast.models.training",),),
    (("mixsyn_fast.models.reconstruction",), ("mixsyn_fast.models.unconditional",), ("mixsyn_fast.models.harmony",)),
    (("mixsyn_fast.models.evaluation",),),
    tuple((f"mixsyn_fast.models.{paper}",) for paper in ("mixsyn", "clvae", "msca", "stylefusion", "harmonized")),
    (("mixsyn_fast.models.demo",),),
    (("examples",),),
    (("mixsyn_fast.cli",), ("benchmarks",)),
)


def _module(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[-1] == "__init__":
        del parts[-1]
    return ".".join(["mixsyn_fast", *parts] if parts[0] == "models" else parts)


FOLDERS = ("mixsyn_fast", "models", "benchmarks", "examples")
FILES = {_module(path): path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
ROOMS = ("mixsyn_fast", "benchmarks", "examples", "tests")  # first names of what is imported


def _imports(module: str, path: Path) -> Iterator[str]:
    """Absolute names of the project's files that a file imports: in functions and under TYPE_CHECKING as well."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in ROOMS)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if node.level else []
            base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
            if base.split(".")[0] in ROOMS:
                for alias in node.names:
                    yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in FILES else base


def _place(module: str) -> tuple[int, int]:
    """Return (floor, room) of a module: those of the longest name that it is or lies in."""
    best: tuple[int, tuple[int, int]] | None = None
    for level, floor in enumerate(FLOORS):
        for number, room in enumerate(floor):
            for name in room:
                # The two packages that hold rooms of their own are named for their __init__.py alone.
                inside = module.startswith(f"{name}.") and name not in ("mixsyn_fast", "mixsyn_fast.models")
                if (module == name or inside) and (best is None or len(name) > best[0]):
                    best = (len(name), (level, number))
    assert best is not None, f"{module} has no room: add it to FLOORS"
    return best[1]


GRAPH = {module: sorted(set(_imports(module, path)) - {module}) for module, path in sorted(FILES.items())}


def test_every_import_points_down_or_stays_in_its_room() -> None:
    wrong = set()
    for module, imported in GRAPH.items():
        floor, room = _place(module)
        for name in imported:
            below, other = _place(name)
            if below > floor or (below == floor and other != room):
                wrong.add((module, name))
    assert not wrong


def test_no_circle_of_files() -> None:
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"a circle: {' -> '.join([*above[above.index(module) :], module])}"
        if module not in done:
            for name in GRAPH.get(module, ()):
                visit(name, (*above, module))
            done.add(module)

    for module in GRAPH:
        visit(module, ())


def test_no_op_imports_another() -> None:
    ops = {
        name for name in GRAPH if name.rpartition(".")[0] == "mixsyn_fast.ops" and not name.split(".")[-1].startswith("_")
    }
    ops.discard("mixsyn_fast.ops.triton_kernels")
    for op in ops:
        assert not set(GRAPH[op]) & ops, f"{op} imports another op"


def test_pictures_and_people_s_text_are_opened_in_one_place() -> None:
    """Each way to open a picture or a list of names would need every kind of file that people have mended anew."""
    rooms = ("mixsyn_fast.models.data", "mixsyn_fast.models.pictures", "mixsyn_fast.models.evaluation")
    opening, elsewhere = ("Image.open", "os.walk"), ("read_text", "glob", "rglob")
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and module.startswith("mixsyn_fast.models."):
                found = ast.unparse(node)
                assert found not in opening or module == "mixsyn_fast.models.data.files", f"{module}: {found}"
                assert node.attr not in elsewhere or not module.startswith(rooms), f"{module}: {found}"


def test_one_file_imports_the_extension_and_one_folder_calls_its_ops() -> None:
    for module, path in FILES.items():
        names = {
            f"{getattr(node, 'module', None) or ''}.{alias.name}".strip(".")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        if module != "mixsyn_fast.extension":
            assert not any(name.split(".")[-1] == "_C" for name in names), f"{path} imports _C"
        if not module.startswith("mixsyn_fast.ops"):
            assert "torch.ops.mixsyn_fast" not in path.read_text(encoding="utf-8"), (
                f"{path} calls an op past its public function"
            )


@pytest.mark.parametrize("folder", ["mixsyn_fast", "models", "benchmarks"])
def test_the_walk_sees_what_is_there(folder: str) -> None:
    """The graph is not empty by a mistake of the walk, and sees imports inside functions and under TYPE_CHECKING."""
    assert sum(len(imported) for module, imported in GRAPH.items() if folder in module) > 20
    assert "mixsyn_fast.extension" in GRAPH["mixsyn_fast.backend"]
    assert "mixsyn_fast.models.training.registry" in GRAPH["mixsyn_fast.models.training.command"]
