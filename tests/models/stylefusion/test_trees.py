"""Trees: those of StyleFusion's domains, and any other as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mixsyn_fast.models.stylefusion import CARS, CHURCHES, FACES, RegionTree, read_tree, write_tree
from mixsyn_fast.models.stylefusion.trees import DOMAINS, Training, find_tree

from mixsyn_fast import StyleLayout
from mixsyn_fast.layers import FusionConfig, FusionHierarchy
from tests.layers import stylefusion_published as published


def test_shipped_trees() -> None:
    assert dict(FACES.tree) == published.FACES
    assert FACES.layout.size == 9088 and CARS.layout.channels[-1] == 64 and len(CHURCHES.layout.conv_layers) == 13
    for config, leaves in ((FACES, 6), (CARS, 4), (CHURCHES, 2)):
        tree = FusionHierarchy(FusionConfig(config.tree, StyleLayout.of([512]), 8))
        assert tree.root == "all" and len(tree.names) == len(config.tree) + leaves
        assert set(tree.nets) == set(config.tree)


def test_trainings_of_the_paper() -> None:
    """Appendix A.2 and A.6."""
    faces = {name: FACES.training_of(name) for name in FACES.tree}
    assert faces == {
        "all": ("favored", "face"),
        "face": ("short", ""),
        "skin_mouth": ("regular", ""),
        "bg_hair_clothes": ("regular", ""),
        "bg_clothes": ("regular", ""),
    }
    assert [CARS.training_of(n) for n in CARS.tree] == [("favored", "car"), ("short", ""), ("short", "")]
    assert CHURCHES.training_of("all") == ("favored", "church")
    assert (FACES.truncation, CARS.truncation, CHURCHES.truncation) == (0.7, 0.5, 0.5)


def test_walking_a_tree() -> None:
    assert FACES.root == "all" and FACES.ancestors("mouth") == ("skin_mouth", "face", "all") and FACES.ancestors("all") == ()
    assert FACES.within("face") == ("face", "skin_mouth", "mouth", "skin", "eyes") and FACES.within("hair") == ("hair",)
    with pytest.raises(ValueError, match="node 'train': expected a name that is no attribute of torch's modules"):
        RegionTree({"all": ("train", "rest"), "train": ("a", "b")})


@pytest.mark.parametrize("name", DOMAINS)
def test_a_tree_goes_to_a_file_and_comes_back(name: str, tmp_path: Path) -> None:
    tree = DOMAINS[name]
    write_tree(tmp_path / "tree.json", tree)
    again = read_tree(tmp_path / "tree.json")
    assert again.tree == tree.tree and again.layout == tree.layout and again.truncation == tree.truncation
    assert all(again.training_of(node) == tree.training_of(node) for node in tree.tree)
    assert list(again.tree) == list(tree.tree) and again.to_json() == tree.to_json() == find_tree(tree.to_json()).to_json()
    assert find_tree(name) is tree and find_tree(tmp_path / "tree.json").tree == tree.tree


def test_the_smallest_file(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"nodes": {"b": {"children": ["c", "d"]}, "a": {"children": ["b", "e"]}}}')
    tree = read_tree(tmp_path / "t.json")
    assert list(tree.tree) == ["a", "b"] and tree.layout == StyleLayout.stylegan2() and tree.truncation == 0.7
    assert tree.training_of("a") == Training("regular", "")
    write_tree(tmp_path / "odd.json", RegionTree({"a": ("b", "c")}, StyleLayout.of([4, 2])))
    assert "size" not in json.loads((tmp_path / "odd.json").read_text())


NODE = {"children": ["b", "c"]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{,}", "expected JSON, got other text in line 1"),
        ([1], r"expected an object with names, got \[1\]"),
        ({}, r"expected nodes and perhaps size, truncation; got missing \['nodes'\]"),
        ({"nodes": {}, "domain": "x"}, r"unknown \['domain'\]"),
        ({"nodes": [1]}, r"nodes: expected an object of nodes, got \[1\]"),
        ({"nodes": {"a": ["b", "c"]}}, r"node 'a': expected an object with names, got \[.b., .c.\]"),
        ({"nodes": {"a": {"training": "short"}}}, r"node 'a': expected children .*missing \['children'\]"),
        ({"nodes": {"a": {"children": ["b"]}}}, r"node 'a': children: expected two names, got \[.b.\]"),
        ({"nodes": {"a": {"children": "bc"}}}, "node 'a': children: expected two names"),
        ({"nodes": {"a": NODE | {"training": "long"}}}, "node 'a': training: expected one of regular, short, favored"),
        ({"nodes": {"a": NODE | {"training": "favored"}}}, "node 'a': favored: expected one of its children b, c, got ''"),
        ({"nodes": {"a": NODE | {"favored": "b"}}}, "node 'a': favored: expected none with regular, got 'b'"),
        ({"nodes": {"a": NODE}, "size": 100}, "size: expected a power of two from 4 to 1024, got 100"),
        ({"nodes": {"a": NODE}, "truncation": "x"}, "truncation: expected a number from 0 to 1"),
        ({"nodes": {"a": NODE}, "truncation": 2}, "truncation: expected 0 to 1, got 2"),
        ({"nodes": {"a": NODE, "d": NODE}}, "one parent per node, 'b' is a child of 'a', got 'd' as well"),
        ({"nodes": {"a": {"children": ["b.c", "d"]}}}, "node 'b.c': expected a name of letters, digits"),
        ({"nodes": {}}, "expected one node that is no child, got 0"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_bad_files(content: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "tree.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=f"tree.json: .*{words}"):
        read_tree(path)


def test_no_such_tree(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent.json: no such file .expected a tree"):
        read_tree(tmp_path / "absent.json")
    with pytest.raises(
        FileNotFoundError, match="tree: expected one of faces, cars, churches, drawn_faces, facades or a file"
    ):
        find_tree("x")
    with pytest.raises(ValueError, match="training: expected inner nodes among a, got 'b'"):
        RegionTree({"a": ("b", "c")}, training={"b": Training()})


def test_a_tree_in_yaml(tmp_path: Path) -> None:
    pytest.importorskip("yaml", reason="pyyaml is not installed")
    path = tmp_path / "tree.yaml"
    path.write_text(
        "truncation: 0.6\nnodes:\n  all: {children: [wall, rest], training: favored, favored: wall}\n"
        "  rest:\n    children:\n      - sky\n      - door\n"
    )
    tree = find_tree(path)
    write_tree(tmp_path / "tree.json", tree)
    assert tree == read_tree(tmp_path / "tree.json") and tree.tree["rest"] == ("sky", "door") and tree.truncation == 0.6
    for text, message in (
        ("nodes: [", "tree.yaml: expected YAML, got other text"),
        ("nodes: {all: {children: [a]}}", "tree.yaml: node 'all': children: expected two names"),
        ("- 1", "tree.yaml: expected an object with names"),
        ("!!python/object/apply:os.system [echo]", "tree.yaml: expected YAML, got other text"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            find_tree(path)
