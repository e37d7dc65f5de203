"""Imports point down: the levels of the house, from the ground up."""

import ast
import re
from pathlib import Path

import pytest

import simjax

ROOT = Path(simjax.__file__).parent

LEVELS = [
    ("simjax", "simjax.typing", "simjax.config", "simjax.settings"),
    ("simjax.checks",),
    ("simjax.diffusion", "simjax.losses", "simjax.sharding", "simjax.porting")
    + ("simjax.chips", "simjax.command_line", "simjax.compiled", "simjax.processes")
    + ("simjax.allocation", "simjax.storage"),
    ("simjax.networks", "simjax.data", "simjax.monitor", "simjax.porting.maps", "simjax.footprint")
    + ("simjax.sweep", "simjax.owner")
    + ("simjax.evaluation.frechet", "simjax.evaluation.precision_recall")
    + ("simjax.evaluation.inception_score", "simjax.evaluation.kernel_distance")
    + ("simjax.evaluation.statistics",),
    ("simjax.checkpoint", "simjax.train.optim", "simjax.train.state", "simjax.train.health")
    + ("simjax.porting.maps.inception", "simjax.porting.maps.pixart", "simjax.evaluation.images")
    + ("simjax.porting.maps.clip",),
    ("simjax.train.step", "simjax.train.teacher_step", "simjax.porting.transformers")
    + ("simjax.evaluation.features", "simjax.evaluation.reference")
    + ("simjax.evaluation.aesthetic", "simjax.evaluation.clip_score")
    + ("simjax.evaluation.clip_tokens",),
    ("simjax.train.compile", "simjax.evaluation.judge", "simjax.evaluation.drawing")
    + ("simjax.fields",),
    ("simjax.build",),
    ("simjax.train.loop", "simjax.porting.port", "simjax.stablehlo"),
    ("simjax.text", "simjax.autoencoder", "simjax.formats"),
    ("simjax.encoding", "simjax.model_card"),
    ("simjax.captions",),
    ("simjax.teacher", "simjax.programs"),
    ("simjax.costs", "simjax.stored", "simjax.ahead"),
    ("simjax.report", "simjax.dry_run", "simjax.timing"),
    ("simjax.online", "simjax.resume"),
    ("simjax.run",),
    ("simjax.main", "simjax.evaluate", "simjax.aot", "simjax.benchmark")
    + ("simjax.encode_prompts", "simjax.sample", "simjax.api", "simjax.export"),
]
PACKAGE_FACES = ("simjax.train", "simjax.evaluation")  # empty __init__.py files
# Slow to import, or for tests only: never at the top of a module, and torch and its kin nowhere.
LAZY = ("tensorflow", "clu", "tensorflow_datasets")
NEVER = ("torch", "diffusers", "transformers")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def level(module: str) -> int:
    """The level of the longest entry that is the module or a package of it."""
    found = [
        (len(entry), number)
        for number, entries in enumerate(LEVELS)
        for entry in entries
        if module == entry or (entry != "simjax" and module.startswith(entry + "."))
    ]
    assert found, f"{module} has no level: add it to LEVELS"
    return max(found)[1]


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        full = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in MODULES else node.module for name in full]
    return []


@pytest.mark.parametrize("module", [name for name in MODULES if name not in PACKAGE_FACES])
def test_imports_point_down_or_to_siblings(module):
    tree = ast.parse(MODULES[module].read_text())
    for node in ast.walk(tree):
        for name in imported(node):
            if not name.startswith("simjax") or name == "simjax":
                continue
            siblings = name.rpartition(".")[0] == module.rpartition(".")[0] != "simjax"
            below = level(name) < level(module)
            same_level_sibling = siblings and level(name) == level(module)
            inside = module == name.rpartition(".")[0]  # a package's face names its own files
            assert below or same_level_sibling or inside, f"{module} imports {name}"


@pytest.mark.parametrize("module", list(MODULES))
def test_heavy_libraries_are_imported_late_and_test_libraries_never(module):
    tree = ast.parse(MODULES[module].read_text())
    top = {name.partition(".")[0] for node in tree.body for name in imported(node)}
    anywhere = {name.partition(".")[0] for node in ast.walk(tree) for name in imported(node)}
    assert not top & set(LAZY)
    assert not anywhere & set(NEVER)


@pytest.mark.parametrize("face", PACKAGE_FACES)
def test_package_faces_are_empty(face):
    assert not MODULES[face].read_text().strip()


def test_tests_take_from_helpers_and_not_from_each_other():
    tests = Path(__file__).parent
    for path in tests.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else imported(node)
            others = [name for name in modules if re.match(r"tests\..*\btest_", name)]
            assert not others, (
                f"{path.relative_to(tests)} imports {others}: move it to tests/helpers"
            )
