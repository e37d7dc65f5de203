"""Runs the Python examples of the folders' READMEs, as if pasted into a file."""

import re
import sys
from pathlib import Path
from typing import Any

from tests.helpers.command import ROOT


def example(folder: str) -> str:
    """The Python block of simjax/FOLDER/README.md."""
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "simjax" / folder / "README.md").read_text(), re.S
    )
    assert len(blocks) == 1, f"simjax/{folder}/README.md: one complete example"
    return blocks[0]


def run(folder: str) -> dict[str, Any]:
    """Runs the example; returns its global names."""
    if str(ROOT) not in sys.path:  # examples import configs/, as `python -m` at the root does
        sys.path.insert(0, str(ROOT))
    names: dict[str, Any] = {"__name__": f"readme_{folder}"}
    exec(compile(example(folder), f"simjax/{folder}/README.md", "exec"), names)  # noqa: S102
    return names


def written(folder: str, directory: Path) -> Path:
    """Writes the example as a config file."""
    file = directory / f"{folder}.py"
    file.write_text(example(folder))
    return file
