"""python -m simjax probe: what it prints and writes, and what it refuses."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from tests.helpers.command import refused, simjax
from tests.helpers.configs import TEACHER, load
from tests.helpers.runs import make_run

pytestmark = pytest.mark.whole_runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    make_run(folder / "run", load("digits"), TEACHER)
    return folder


def test_it_writes_curves_a_picture_and_a_config_that_a_run_accepts(folder):
    quick = ("--samples=8", "--steps=4", "--levels=9", "--noexplain")
    done = simjax("probe", "--source=run", *quick, "--write=mine.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING (uncalibrated)" in done.stdout  # it was never trained
    assert "generator.sigma_init" in done.stdout and "--config=" in done.stdout
    found = json.loads((folder / "probe" / "probe.json").read_text())
    assert len(found["curves"]["sigma"]) == 9 and found["steps"] == 4
    with Image.open(folder / "probe" / "probe.png") as picture:
        assert picture.size == (1100, 900)
    sigma = round(found["proposal"]["sigma_init"], 6)
    program = (
        "import sys; sys.argv = ['x', '--config=mine.py', '--config.steps=30']\n"
        "from simjax.commands import flags\nflags.parse_flags(sys.argv)\n"
        "from simjax.runs import check\nfound = flags.CONFIG.value\n"
        "check.check(found, devices=1)\nprint(found.generator.sigma_init, found.data.source)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    written, source = done.stdout.split()
    assert float(written) == pytest.approx(sigma, rel=1e-3) and source == "digits"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "expected --source=..., got nothing"),
        (("--source=none",), "none"),
        (("--source=run", "--write=mine.txt"), "expected a Python file, as configs/mine.py"),
        (("--source=run", "--levels=2"), "levels"),
    ],
)
def test_what_is_refused(folder, flags, message):
    assert message in refused(simjax("probe", *flags, cwd=folder))
