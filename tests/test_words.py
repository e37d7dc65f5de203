"""The words of the repository: the field's terms, short first lines, an example in every folder.

Read are docstrings, comments, strings and test names of Python files; the text of Markdown,
notebooks and launch scripts.
"""

import ast
import importlib
import io
import json
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = sorted(
    path
    for folder in ("simjax", "configs", "launch", "notebooks", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if path != Path(__file__)
)
READMES = sorted(path for path in ROOT.rglob("*.md") if not {"runs", ".venv"} & set(path.parts))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SCRIPTS = sorted(path for path in (ROOT / "launch").iterdir() if path.suffix in {".sh", ".yaml"})
FOLDERS = (
    *("launch", "configs", "notebooks", "tests"),
    *(f"simjax/{name}" for name in ("losses", "diffusion", "networks", "porting", "data", "text")),
    *(f"simjax/{name}" for name in ("evaluation", "train", "export", "perf")),
)
MOST_WORDS = 12  # of a docstring's first line
EXAMPLES = 3  # functions of a folder whose docstring has a doctest

GENITIVE = r"(^|[.!?] )Of (a|an|the|its|one|each|every|all|which)\b[^.,;:]{0,60}\.(\s|$)"

# What the field says otherwise -> how it says it.
NOT = {
    r"\btold\b": "conditioned on, given",
    r"\basked (for|of)\b|\basks\b": "conditioned on; requested; returns, raises, reads",
    r"\b(says|knows|wants)\b": "returns, raises, reads, needs, states",
    r"\bas (they are|it is)\b(?! not)": "unchanged, identity, raw",
    r"\bwhat is (left|done|there|here)\b": "the noun itself: remainder, callback, contents",
    r"\bthat which\b": "the noun itself",
    r"\binert\b|\ba machine of its own\b": "restricted unpickler",
    r"\bbound from below\b|\bbounds from below\b": "lower bound",
    r"\bis no multiple\b|\bno multiple of\b": "must divide, must be a multiple of",
    r"\bis a teacher by itself\b": "works as a teacher",
    r"\bnever ended\b": "did not finish, hung",
    GENITIVE: "a noun, no genitive sentence",
    r"\b(teacher|generator) evaluations\b": "NFE",
    r"\bevaluations? (of the network|a sample|an image)\b": "NFE",
    r"\ba step a call\b|\ban image and step\b": "per",
}


def texts_of(path: Path) -> list[tuple[int, str]]:
    """(line, text) of a Python file's comments, strings and test names; any other's text."""
    source = path.read_text()
    if path.suffix == ".ipynb":
        cells = json.loads(source)["cells"]
        source = "\n".join("".join(cell["source"]) for cell in cells)
    if path.suffix != ".py":
        return [(0, " ".join(source.split()))]
    found = []
    comment, last = [], -2
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:  # lines of one comment read as one
            line = token.start[0]
            if line != last + 1 and comment:
                found.append((last, " ".join(comment)))
                comment = []
            comment.append(token.string.lstrip("# "))
            last = line
    found.append((last, " ".join(comment)))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append((node.lineno, " ".join(node.value.split())))
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            found.append((node.lineno, node.name.replace("_", " ")))
    return found


@pytest.mark.parametrize(
    "path", [*PYTHON, *READMES, *NOTEBOOKS, *SCRIPTS], ids=lambda p: str(p.relative_to(ROOT))
)
def test_words_are_those_of_the_field(path):
    texts = texts_of(path)
    wrong = [
        f"{path.name}:{line}: {match.group()!r}; better: {better}"
        for line, text in texts
        for pattern, better in NOT.items()
        for match in re.finditer(pattern, text)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "path",
    [path for path in PYTHON if "tests" not in path.relative_to(ROOT).parts],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_first_lines_have_at_most_twelve_words(path):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    long = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, kinds) and (docstring := ast.get_docstring(node)):
            first = docstring.split("\n")[0]
            if len(first.split()) > MOST_WORDS:
                long.append(f"{getattr(node, 'name', path.name)}: {first}")
    assert not long, "\n".join(long)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_has_a_readme_of_at_most_sixty_lines(folder):
    lines = (ROOT / folder / "README.md").read_text().splitlines()
    assert len(lines) <= 60
    assert max(len(line) for line in lines if not line.startswith("|")) <= 140


def test_the_front_page_has_at_most_two_hundred_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


@pytest.mark.parametrize(
    "folder",
    sorted(
        path.name
        for path in (ROOT / "simjax").iterdir()
        if path.is_dir() and any(path.rglob("*.py"))
    ),
)
def test_three_public_functions_of_a_folder_have_a_doctest(folder):
    examples = [
        f"{path.stem}.{node.name}"
        for path in (ROOT / "simjax" / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and ">>> " in (ast.get_docstring(node) or "")
    ]
    assert len(examples) >= EXAMPLES, examples


def _modules_with_doctests() -> list[str]:
    paths = (path for path in PYTHON if path.is_relative_to(ROOT / "simjax"))
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in paths
        if ">>> " in path.read_text()
    ]


@pytest.mark.parametrize("name", _modules_with_doctests())
def test_doctests(name, tmp_path, monkeypatch):
    import doctest

    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert result.attempted > 0
    assert result.failed == 0
