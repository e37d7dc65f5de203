"""Imports point down by folder: the nine levels of the house, from the ground up."""

import ast
import re
from pathlib import Path

import pytest

import simjax

ROOT = Path(simjax.__file__).parent

LEVELS = [
    ("typing", "errors"),
    ("diffusion", "losses", "runtime"),
    ("networks", "data", "train"),
    ("config", "porting"),
    ("text", "evaluation"),
    ("models",),
    ("runs",),
    ("export", "perf"),
    ("api", "commands"),
]
DOORS = ("__init__", "main", "__main__")  # above all levels: nothing imports them
# Slow to import, or for tests only: never at the top of a module, and torch and its kin nowhere.
LAZY = ("tensorflow", "clu", "tensorflow_datasets")
NEVER = ("torch", "diffusers", "transformers")

MODULES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob("*.py"))}


def level(folder: str) -> int:
    """Of a folder, or of a file that lies beside the folders."""
    found = [number for number, folders in enumerate(LEVELS) if folder in folders]
    assert found, f"{folder} has no level: add it to LEVELS"
    return found[0]


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        return (
            [f"{module}.{alias.name}" for alias in node.names] if module == "simjax" else [module]
        )
    return []


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    folder = module.partition("/")[0].removesuffix(".py")
    if folder in DOORS:
        return
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        for name in imported(node):
            if not name.startswith("simjax."):
                continue
            other = name.split(".")[1]
            assert other == folder or level(other) < level(folder), f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_heavy_libraries_are_imported_late_and_test_libraries_never(module):
    tree = ast.parse(MODULES[module].read_text())
    top = {name.partition(".")[0] for node in tree.body for name in imported(node)}
    anywhere = {name.partition(".")[0] for node in ast.walk(tree) for name in imported(node)}
    assert not top & set(LAZY)
    assert not anywhere & set(NEVER)


def test_tests_take_from_helpers_and_not_from_each_other():
    tests = Path(__file__).parent
    for path in tests.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else imported(node)
            others = [name for name in modules if re.match(r"tests\..*\btest_", name)]
            assert not others, (
                f"{path.relative_to(tests)} imports {others}: move it to tests/helpers"
            )
