"""Committed notebooks: structure, stored outputs; executed by notebooks/execute.py."""

import importlib.util
import json
import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = ["01_why_it_works", "02_distil_digits", "03_port_a_teacher", "04_your_own"]
COLAB = "https://colab.research.google.com/github/simjax/simjax/blob/main/notebooks/"
MACHINE = re.compile(r"(?<![\w.])/(tmp|work|root|home|Users|var)/")  # absolute paths
MOST_BYTES = 400_000  # per file, our choice
MOST_LINES = 20  # per cell tagged twenty-lines in notebook 04

every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def code(path: Path, tag: str = "") -> list[dict]:
    """Code cells; only those with the tag, if given."""
    cells = [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]
    return [cell for cell in cells if not tag or tag in cell["metadata"].get("tags", ())]


def test_names_of_notebooks():
    assert [path.stem for path in NOTEBOOKS] == NAMES


@every
def test_notebook_format_is_valid(path):
    nbformat.validate(nbformat.read(path, as_version=4))


@every
def test_first_cells_are_title_with_badge_and_shared_install_cell(path):
    title, install = read(path)["cells"][:2]
    text = "".join(title["source"])
    assert text.startswith("# ") and f"({COLAB}{path.name})" in text
    assert install == code(path, "install")[0]
    (first, *others) = ("".join(code(p, "install")[0]["source"]) for p in NOTEBOOKS)
    assert "pip install" in first and set(others) == {first}


@every
def test_executed_from_top_to_bottom_without_errors(path):
    cells = code(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@every
def test_outputs_are_small_without_timestamps_or_absolute_paths(path):
    assert path.stat().st_size < MOST_BYTES
    for cell in code(path):
        assert "execution" not in cell["metadata"]  # timestamps
        for output in cell["outputs"]:
            texts = {k: v for k, v in output.get("data", {}).items() if k.startswith("text/")}
            found = MACHINE.search(json.dumps([output.get("text", ""), texts]))
            assert not found, found
            assert "image/jpeg" not in output.get("data", {})


def test_tagged_cells_of_notebook_04_have_at_most_twenty_lines():
    cells = code(FOLDER / "04_your_own.ipynb", "twenty-lines")
    assert len(cells) == 4  # teacher, its training, distance, loss
    for cell in cells:
        lines = [line for line in "".join(cell["source"]).splitlines() if line.strip()]
        assert len(lines) <= MOST_LINES, lines


def test_stored_outputs_are_cleaned():
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    execute = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(execute)
    picture = {"image/png": "a", "image/jpeg": "b", "text/plain": "c"}
    outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="in /somewhere/run"),
        nbformat.v4.new_output("stream", name="stdout", text="\n1/2\r2/2\nend\n"),
        nbformat.v4.new_output("display_data", data=picture),
    ]
    stream, shown = execute.tidied(outputs, Path("/somewhere"))
    assert stream.text == "in ./run\n2/2\nend\n"
    assert shown.data == {"image/png": "a", "text/plain": "c"}
