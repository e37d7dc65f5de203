"""Executes notebooks offline on the CPU; stops at the first error.

python notebooks/execute.py                # all, in order (as in CI)
python notebooks/execute.py 02 03 --write  # only these; outputs are stored in the .ipynb files

All notebooks share one working directory (temporary unless --directory is set): 03 distils the
teacher that 02 trained. Requires `pip install -e ".[notebooks]"`.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

HERE = pathlib.Path(__file__).resolve().parent
TIMEOUT = 600  # seconds per cell; all notebooks together take less on two cores
QUIET = {
    "JAX_PLATFORMS": "cpu",
    "TQDM_DISABLE": "1",  # no progress bars in stored outputs
    "PYTHONWARNINGS": "ignore:IProgress not found",  # from tqdm if ipywidgets is missing
}
NOWHERE = "http://127.0.0.1:9"  # discard port: connections are refused


def main() -> None:
    """Parses flags, executes notebooks and prints the seconds of each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="file name prefixes, e.g. 02; default: all")
    parser.add_argument("--write", action="store_true", help="store outputs in the .ipynb files")
    parser.add_argument("--online", action="store_true", help="allow downloads")
    parser.add_argument(
        "--directory", type=pathlib.Path, help="working directory; default: temporary"
    )
    given = parser.parse_args()
    os.environ.update(QUIET)
    if not given.online:
        os.environ.update(dict.fromkeys(("http_proxy", "https_proxy"), NOWHERE))
    with tempfile.TemporaryDirectory() as temporary:
        directory = (given.directory or pathlib.Path(temporary)).resolve()
        begun = time.monotonic()
        for path in chosen(given.names):
            execute(path, directory, write=given.write)
        print(f"{time.monotonic() - begun:6.1f} s  together")


def chosen(names: list[str]) -> list[pathlib.Path]:
    """Notebooks with one of these file name prefixes; all if none given."""
    found = sorted(HERE.glob("*.ipynb"))
    for name in names:
        if not any(path.name.startswith(name) for path in found):
            sys.exit(f"no notebook begins with {name!r}; known: {[p.stem for p in found]}.")
    return [path for path in found if path.name.startswith(tuple(names) or "")]


def execute(path: pathlib.Path, directory: pathlib.Path, *, write: bool) -> None:
    """Executes one notebook in `directory`; a failing cell exits the program."""
    notebook = nbformat.read(path, as_version=4)
    begun = time.monotonic()
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(directory)}},
        record_timing=False,
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError) as error:
        sys.exit(f"{path.name}: {error}")
    print(f"{time.monotonic() - begun:6.1f} s  {path.name}", flush=True)
    if write:
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = tidied(cell.outputs, directory)
        path.write_text(nbformat.writes(notebook, indent=1) + "\n")


def tidied(outputs: list, directory: pathlib.Path) -> list:
    """Cleans outputs: no absolute paths, one image format, merged streams."""
    places = {str(directory): ".", str(HERE.parent): "simjax", str(pathlib.Path.home()): "~"}
    kept = []
    for output in outputs:
        if output.output_type == "stream":
            if kept and kept[-1].output_type == "stream" and kept[-1].name == output.name:
                kept[-1].text += output.text
                continue
        elif "image/png" in output.get("data", {}):
            output.data.pop("image/jpeg", None)  # Pillow emits both formats
        kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = without(places, last_of_each_line(output.text))
    return kept


def last_of_each_line(text: str) -> str:
    """Keeps the text after each line's last carriage return, like a terminal."""
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def without(places: dict[str, str], text: str) -> str:
    """Replaces directories by short names."""
    for place, name in places.items():
        text = text.replace(place, name)
    return text


if __name__ == "__main__":
    main()
