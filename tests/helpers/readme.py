"""The examples that a README has: run as a reader would, who pastes them into a file."""

import re
import sys
from pathlib import Path
from typing import Any

from tests.helpers.command import ROOT


def example(folder: str) -> str:
    """The Python of simjax/FOLDER/README.md."""
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "simjax" / folder / "README.md").read_text(), re.S
    )
    assert len(blocks) == 1, f"simjax/{folder}/README.md: one complete example"
    return blocks[0]


def run(folder: str) -> dict[str, Any]:
    """The names that the example leaves."""
    if str(ROOT) not in sys.path:  # its configs/ is imported, as by `python -m` there
        sys.path.insert(0, str(ROOT))
    names: dict[str, Any] = {"__name__": f"readme_{folder}"}
    exec(compile(example(folder), f"simjax/{folder}/README.md", "exec"), names)  # noqa: S102
    return names


def written(folder: str, directory: Path) -> Path:
    """A config file that is the example."""
    file = directory / f"{folder}.py"
    file.write_text(example(folder))
    return file
