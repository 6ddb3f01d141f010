"""Imports go downward only, and what docs/architecture.md names is there."""

import ast
import re
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
FOLDERS = tuple(PROJECT["tool"]["setuptools"]["package-dir"].values())
ANALYSES = tuple(name for name in FOLDERS if name not in ("core", "cli"))
BELOW = {"core": {"core"}, **{name: {"core", name} for name in ANALYSES}, "cli": set(FOLDERS)}
BELOW["trust"] |= {"occlusion", "gradients"}
BELOW["reasons"] |= {"occlusion", "filters"}
BELOW["audit"] |= {"occlusion", "gradients", "embeddings"}
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
# `folder/file.py`, `name` in the text, and `folder/file.py` | `name` in the last table.
NAMED = re.findall(r"`(\w+/[\w/]+\.py)`(?:,| \|)\s+`(\w+)`", PAGE)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("cnnviz", *parts)).removesuffix(".__init__")


MODULES = {
    module_of(path): ast.parse(path.read_text("utf-8"))
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*.py")
}


def targets(statement: ast.stmt) -> set[str]:
    """Modules of ours that an import statement loads."""
    if isinstance(statement, ast.Import):
        return {alias.name for alias in statement.names} & MODULES.keys()
    if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("cnnviz"):
        inside = {f"{statement.module}.{alias.name}" for alias in statement.names}
        return ({str(statement.module)} | inside) & MODULES.keys()
    return set()


def at_import_time(body: list[ast.stmt]) -> set[str]:
    """What runs when a module is loaded: not functions, not what only type checkers see."""
    found: set[str] = set()
    for statement in body:
        found |= targets(statement)
        if isinstance(statement, ast.If):
            typing = ast.unparse(statement.test) == "TYPE_CHECKING"
            found |= at_import_time(statement.orelse + ([] if typing else statement.body))
        elif isinstance(statement, ast.Try | ast.ClassDef | ast.With):
            found |= at_import_time(statement.body)
    return found


LOADED = {name: at_import_time(tree.body) for name, tree in MODULES.items()}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_from_floors_below_it(folder):
    # Anywhere in the source, inside functions and for type checkers too.
    upward = [
        f"{name} imports {target}"
        for name, tree in MODULES.items()
        if name.split(".")[1] == folder
        for statement in ast.walk(tree)
        if isinstance(statement, ast.stmt)
        for target in targets(statement)
        if target.split(".")[1] not in BELOW[folder]
    ]
    assert upward == []


def test_there_are_imports_to_judge():
    assert sum(map(len, LOADED.values())) > len(MODULES)


def test_no_modules_import_each_other_in_a_circle():
    TopologicalSorter(LOADED).prepare()  # raises CycleError


def test_in_core_output_is_above_data_above_models_above_graph():
    rooms = ("graph", "models", "data", "output")  # from below
    crossing = {
        (name.split(".")[2], target.split(".")[2])
        for name, found in LOADED.items()
        for target in found
        if name.startswith("cnnviz.core.") and target.startswith("cnnviz.core.")
    }
    between = {(a, b) for a, b in crossing if a in rooms and b in rooms and a != b}
    assert between
    assert [(a, b) for a, b in between if rooms.index(a) < rooms.index(b)] == []


def test_every_path_on_the_page_exists():
    code = (ROOT / folder for folder in FOLDERS)
    homes = [ROOT, *(path for home in code for path in (home, *home.rglob("*")) if path.is_dir())]
    paths = set(re.findall(r"`(\w+/[\w/.]*)`", PAGE))
    assert [path for path in paths if not any((home / path).exists() for home in homes)] == []
    assert len(paths) > 20


def defined(path: str) -> set[str]:
    body = MODULES[module_of(ROOT / path)].body
    return {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_every_name_on_the_page_is_defined_in_its_file():
    assert [(path, name) for path, name in NAMED if name not in defined(path)] == []


def test_the_page_says_where_to_find_what_newcomers_look_for():
    table = PAGE[PAGE.index("## Where to find") :]
    assert len(re.findall(r"^\| .* \| `.*\.py` \| `\w+` \|$", table, re.MULTILINE)) >= 11
