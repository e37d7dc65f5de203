"""Imports point down through nine levels of folders, lowest first."""

import ast
import importlib
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
DOORS = ("__init__", "main", "__main__")  # above all levels: not imported by others
# LAZY is slow to import: only inside functions. NEVER is for tests only.
LAZY = ("tensorflow", "clu", "tensorflow_datasets")
NEVER = ("torch", "diffusers", "transformers")

MODULES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob("*.py"))}


def level(folder: str) -> int:
    """Level of a folder, or of a file beside the folders."""
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
def test_heavy_libraries_are_imported_lazily_and_test_libraries_never(module):
    tree = ast.parse(MODULES[module].read_text())
    top = {name.partition(".")[0] for node in tree.body for name in imported(node)}
    anywhere = {name.partition(".")[0] for node in ast.walk(tree) for name in imported(node)}
    assert not top & set(LAZY)
    assert not anywhere & set(NEVER)


def test_tests_import_helpers_but_not_each_other():
    tests = Path(__file__).parent
    for path in tests.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else imported(node)
            others = [name for name in modules if re.match(r"tests\..*\btest_", name)]
            assert not others, (
                f"{path.relative_to(tests)} imports {others}: move it to tests/helpers"
            )


def module_named(path: str):
    """The simjax module of this dotted name, or None if it is not one."""
    try:
        return importlib.import_module(path) if path.split(".")[0] == "simjax" else None
    except ModuleNotFoundError:
        return None


def read_off_modules(tree: ast.AST):
    """(module, attribute) of every `module.attribute`, unless a variable shadows the module."""
    bound = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            paths = {alias.asname or alias.name: alias.name for alias in node.names}
            found = {name: module_named(f"{node.module}.{path}") for name, path in paths.items()}
            bound |= {name: module for name, module in found.items() if module}
    others = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    others |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        owner = node.value if isinstance(node, ast.Attribute) else None
        if isinstance(owner, ast.Name) and owner.id in bound and owner.id not in others:
            yield bound[owner.id], node.attr


@pytest.mark.parametrize("module", MODULES)
def test_every_attribute_read_from_a_module_exists(module):
    """Finds renamed functions in code that no test executes here, e.g. for TPUs."""
    for owner, name in read_off_modules(ast.parse(MODULES[module].read_text())):
        assert hasattr(owner, name), f"{module} reads {owner.__name__}.{name}"
