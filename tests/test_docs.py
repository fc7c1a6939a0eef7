"""The documentation: examples run as they stand, links lead somewhere, pictures are small."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WITH_EXAMPLES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS = [*WITH_EXAMPLES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "models").rglob("*.md"))]
PICTURES = sorted((ROOT / "docs" / "pictures").iterdir())
EXAMPLES = [
    pytest.param(code, id=f"{path.relative_to(ROOT)}-{number}")
    for path in WITH_EXAMPLES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_example(code: str) -> None:
    exec(compile(code, "<example>", "exec"), {})


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 10 and len(re.findall("```python", (ROOT / "README.md").read_text())) == 3


def _anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as the usual viewers make them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("http"):
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            assert target.exists(), link
            assert not anchor or anchor in _anchors(target), link


def test_the_front_page_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 180 and len(re.findall(r"^!\[", text, re.MULTILINE)) == 3


@pytest.mark.parametrize("path", PICTURES, ids=[path.name for path in PICTURES])
def test_a_picture_is_small_and_shown(path: Path) -> None:
    """A palette PNG (plots, drawings) or a JPEG (photographs) of at most 250 KB, and some document has it."""
    assert path.suffix in (".png", ".jpg") and path.stat().st_size <= 250_000
    assert any(f"pictures/{path.name}" in document.read_text() for document in DOCUMENTS)
    if path.suffix == ".png":
        image = pytest.importorskip("PIL.Image", reason="pillow is not installed").open(path)
        assert image.mode == "P"
