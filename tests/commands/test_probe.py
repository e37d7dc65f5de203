"""simjax probe: output, files and errors."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from tests.helpers import text_to_image
from tests.helpers.command import refused, simjax
from tests.helpers.configs import TEACHER, load
from tests.helpers.encoder_files import write_encoder
from tests.helpers.runs import make_run

pytestmark = pytest.mark.whole_runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    make_run(folder / "run", load("digits"), TEACHER)
    text_to_image.write_pixart(folder / "pixart")
    text_to_image.write_autoencoder(folder / "vae")
    write_encoder(folder / "t5")
    (folder / "prompts.txt").write_text("a blue dog\n")
    return folder


QUICK = ("--samples=8", "--steps=4", "--levels=9", "--noexplain")


def test_published_text_to_image_weights_with_prompts(folder):
    """Latents are decoded for the picture with an autoencoder, else shown raw."""
    given = ("--source=pixart", "--encoder=t5", "--prompt=a red cat", "--prompts=prompts.txt")
    for out, more in (("seen", ("--autoencoder=vae",)), ("latents", ())):
        done = simjax("probe", *given, *more, *QUICK, f"--out={out}", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert "WARNING" in done.stdout  # random weights
        assert len(json.loads((folder / out / "probe.json").read_text())["curves"]["error"]) == 9
        assert (folder / out / "probe.png").exists()


def test_writes_curves_a_picture_and_a_valid_config(folder):
    done = simjax("probe", "--source=run", *QUICK, "--write=mine.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING (uncalibrated)" in done.stdout  # random weights
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
        (("--source=run", "--write=mine.txt"), "expected a Python file, e.g. configs/mine.py"),
        (("--source=run", "--levels=2"), "levels"),
        (("--source=run", "--prompt=a cat"), "SongUNet reads no prompts"),
        (("--source=pixart",), "pass prompts and their encoder"),
        (("--source=pixart", "--prompt=a cat"), "reads no prompts; leave them out, or pass the"),
        (("--source=run", "--encoder=t5"), "reads no captions; leave the encoder out"),
    ],
)
def test_user_errors_are_rejected(folder, flags, message):
    assert message in refused(simjax("probe", *flags, cwd=folder))
