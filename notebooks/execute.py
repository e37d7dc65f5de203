"""Executes notebooks top to bottom, offline on the CPU, as CI does; a cell's error ends it.

python notebooks/execute.py                # all, in order
python notebooks/execute.py 02 03 --write  # these; what they print and draw is stored in the files

They run in one directory, a temporary one unless --directory names another: 03 distils the teacher
that 02 has trained. Needs the packages of `pip install -e ".[notebooks]"`.
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
TIMEOUT = 600  # seconds a cell; all notebooks together take less on two cores
QUIET = {
    "JAX_PLATFORMS": "cpu",
    "TQDM_DISABLE": "1",  # a bar is for who watches it
    "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm, without ipywidgets
}
NOWHERE = "http://127.0.0.1:9"  # the port of the discard service: nobody listens


def main() -> None:
    """Parses the command line, runs, and prints the seconds of each notebook."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="beginnings of file names; default: all")
    parser.add_argument("--write", action="store_true", help="store outputs in the files")
    parser.add_argument("--online", action="store_true", help="let them download")
    parser.add_argument("--directory", type=pathlib.Path, help="where they run; default: temporary")
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
    """The notebooks that begin with one of the names, in order; without names, all."""
    found = sorted(HERE.glob("*.ipynb"))
    for name in names:
        if not any(path.name.startswith(name) for path in found):
            sys.exit(f"no notebook begins with {name!r}; there are {[p.stem for p in found]}.")
    return [path for path in found if path.name.startswith(tuple(names) or "")]


def execute(path: pathlib.Path, directory: pathlib.Path, *, write: bool) -> None:
    """Runs one notebook in `directory`; a failing cell's error ends the program."""
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
    """Outputs as they are kept: no places of this machine, one format for each picture."""
    places = {str(directory): ".", str(HERE.parent): "simjax", str(pathlib.Path.home()): "~"}
    kept = []
    for output in outputs:
        if output.output_type == "stream":
            if kept and kept[-1].output_type == "stream" and kept[-1].name == output.name:
                kept[-1].text += output.text
                continue
        elif "image/png" in output.get("data", {}):
            output.data.pop("image/jpeg", None)  # Pillow shows both
        kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = without(places, last_of_each_line(output.text))
    return kept


def last_of_each_line(text: str) -> str:
    """What a terminal would show in the end of lines that were written over each other."""
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def without(places: dict[str, str], text: str) -> str:
    """The text with short names in place of directories."""
    for place, name in places.items():
        text = text.replace(place, name)
    return text


if __name__ == "__main__":
    main()
