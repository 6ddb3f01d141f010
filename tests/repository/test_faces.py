"""Every folder's public face: each name is there, whatever was imported before."""

import ast
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from parts import slow_but

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"].values()
FACES = tuple(folder for folder in FOLDERS if folder != "cli")


def names_of(folder: str) -> dict[str, str]:
    """Name to module, as type checkers see them."""
    tree = ast.parse((ROOT / folder / "__init__.py").read_text("utf-8"))
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: str(node.module)
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize("folder", FACES)
def test_a_face_offers_what_type_checkers_see_and_nothing_else(folder):
    package, seen = import_module(f"cnnviz.{folder}"), names_of(folder)
    assert sorted(package.__all__) == sorted(seen)
    for name, module in seen.items():
        assert getattr(package, name) is getattr(import_module(module), name)
    with pytest.raises(AttributeError, match=f"'cnnviz.{folder}' has no attribute 'nothing'"):
        _ = package.nothing


@pytest.mark.parametrize("folder", FACES)
def test_no_name_of_a_face_is_that_of_a_module_below_it(folder):
    below = {path.stem for path in (ROOT / folder).iterdir() if path.stem != "__init__"}
    assert below.isdisjoint(names_of(folder))


@pytest.mark.parametrize("modules_first", slow_but([True, False], True))
def test_names_are_the_same_in_both_orders_of_import(modules_first):
    faces = [f"from cnnviz.{f} import {name} as {f}_{name}" for f in FACES for name in names_of(f)]
    modules = [f"import {module}" for f in FACES for module in names_of(f).values()]
    again = [f"assert {f}_{name} is cnnviz.{f}.{name}" for f in FACES for name in names_of(f)]
    order = modules + faces if modules_first else faces + modules
    subprocess.run([sys.executable, "-c", "\n".join(order + again)], check=True)


def test_importing_the_faces_imports_neither_torch_nor_matplotlib():
    code = "import sys\n" + "".join(f"import cnnviz.{f}\n" for f in FACES)
    code += "assert {'torch', 'matplotlib'}.isdisjoint(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
