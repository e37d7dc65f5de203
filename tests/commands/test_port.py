"""simjax port: what it prints of a file, what it refuses; and the list of all commands."""

import pytest

from simjax.__main__ import COMMANDS
from tests.helpers.checkpoints import write
from tests.helpers.command import ROOT, simjax
from tests.helpers.configs import TEACHER


def test_porting_prints_what_a_file_is_and_leaves_nothing(tmp_path):
    source = str(tmp_path / "net.pkl")
    write(tmp_path / "net.pkl", TEACHER)
    done = simjax("port", source, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for part in (
        source,
        "SongUNet",
        "channels",
        "10 classes",
        "edm, sigma_data 0.5",
        "sha256",
        "8x8_block0/conv1/kernel",
    ):
        assert part in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"net.pkl"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one source, as edm-cifar10-32x32-cond-vp, a URL or a file; got none."),
        (["one.pkl", "two.pkl"], "expected one source"),
        (["edm-cifar10"], "did you mean edm-cifar10-32x32-"),
        (["/none/net.pkl"], "/none/net.pkl does not exist"),
        (["net.pkl", "--family=unet"], "family = 'unet' is not known; known: dit, sit, sit_gvp."),
        (["net.pkl", "--no=1"], "Unknown command line flag 'no'"),
    ],
)
def test_mistakes_get_one_message(arguments, message):
    done = simjax("port", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("simjax: ") and "Traceback" not in done.stderr


@pytest.mark.parametrize("asked", [[], ["--help"], ["help"], ["-h"]])
def test_help_names_every_command_on_one_screen(asked):
    done = simjax(*asked)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert len(done.stdout.splitlines()) <= 24


def test_a_command_that_is_not_known_is_refused_with_those_that_are():
    done = simjax("smaple")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "simjax: there is no command smaple; did you mean sample? Known: "
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name):
    done = simjax(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python -m simjax {name}" in done.stdout
    assert "  --" in done.stdout


def test_every_file_of_commands_is_one_or_shared():
    files = {path.stem for path in (ROOT / "simjax" / "commands").glob("*.py")}
    assert files == {name.replace("-", "_") for name in COMMANDS} | {"__init__", "flags"}
