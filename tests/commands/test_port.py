"""simjax port: its summary and its errors; help texts of all commands."""

import os
import subprocess
import sys

import pytest

from simjax.__main__ import COMMANDS
from tests.helpers.checkpoints import write
from tests.helpers.command import ROOT, simjax
from tests.helpers.configs import TEACHER


def test_port_prints_a_summary_and_writes_no_files(tmp_path):
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
        (
            [],
            "expected one source: a known name (e.g. edm-cifar10-32x32-cond-vp), a URL, a file or "
            "a folder; got none.",
        ),
        (["one.pkl", "two.pkl"], "expected one source"),
        (["edm-cifar10"], "did you mean edm-cifar10-32x32-"),
        (["/none/net.pkl"], "/none/net.pkl does not exist"),
        (["net.pkl", "--family=unet"], "family = 'unet' is not known; known: dit, sit, sit_gvp."),
        (["net.pkl", "--no=1"], "Unknown command line flag 'no'"),
    ],
)
def test_user_errors_print_one_message(arguments, message):
    done = simjax("port", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("simjax: ") and "Traceback" not in done.stderr


def assert_one_screen_with_an_example(text: str) -> None:
    """At most 50 lines of 100 columns; the last paragraph has examples."""
    lines = text.rstrip().splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 100
    heading, *examples = lines[len(lines) - lines[::-1].index("") :]
    assert heading == "Examples:" and all(line.startswith("  ") for line in examples)
    assert any("simjax" in line for line in examples)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"], ["-h"]])
def test_help_names_every_command_on_one_screen(arguments):
    done = simjax(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert len(done.stdout.splitlines()) <= 24
    assert_one_screen_with_an_example(done.stdout)


def test_an_unknown_command_is_rejected_with_the_known_ones():
    done = simjax("smaple")
    assert done.returncode == 1
    assert done.stderr.startswith("simjax: unknown command smaple; did you mean sample? Known: ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_on_one_screen(name):
    done = simjax(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python -m simjax {name}" in done.stdout
    assert "  --" in done.stdout
    assert_one_screen_with_an_example(done.stdout)


@pytest.mark.parametrize(
    "arguments",
    [("simjax",), ("simjax", "--help"), ("simjax", "port", "--helpfull"), ("simjax.main", "-h")],
)
def test_help_to_a_closed_pipe_prints_no_traceback(arguments):
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does once it has its lines
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_module_of_commands_is_a_command_or_flags():
    files = {path.stem for path in (ROOT / "simjax" / "commands").glob("*.py")}
    assert files == {name.replace("-", "_") for name in COMMANDS} | {"__init__", "flags"}
