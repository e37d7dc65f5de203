"""Shared by all commands: help, --config in both spellings, flags without effect."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from simjax import config
from simjax.commands import flags as command_line
from tests.helpers.command import ROOT

COMMANDS = ROOT / "simjax" / "commands"


@pytest.mark.parametrize("command", ["evaluate", "sample", "export"])
def test_uses_lists_every_flag_of_the_command(command):
    source = (COMMANDS / f"{command}.py").read_text()
    table = re.search(r"^USES = .*?^[})](  #.*?)?$", source, re.MULTILINE | re.DOTALL)[0]
    defined = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)
    assert set(re.findall(r'"(\w+)"', table)) == set(defined)


def test_spelled_leaves_out_the_output_flags(monkeypatch):
    given = ["x", "--config", "a.py", "--out=b", "--steps=2", "--out", "c", "-out=d", "--outer=e"]
    monkeypatch.setattr(sys, "argv", given)
    command = command_line.spelled("aot", without=("out",))
    assert command == "python -m simjax aot --config a.py --steps=2 --outer=e"


def main(*flags: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Runs python -m simjax.main; fast, since it validates flags before importing JAX."""
    command = [sys.executable, "-m", "simjax.main", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_help_lists_config_and_exits_with_status_0():
    for flag in ("--help", "-h"):
        done = main("--config=configs/digits.py", flag)
        assert (done.returncode, done.stderr) == (0, "")
        assert "--config: Python file whose get_config()" in done.stdout
        assert "--workdir: " in done.stdout
        assert len(done.stdout.splitlines()) <= 50
        assert max(map(len, done.stdout.splitlines())) <= 100
        assert done.stdout.splitlines()[-1].startswith("  python -m simjax.main --config=")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--config=configs/none.py", "--config: there is no file configs/none.py."),
        ("--config configs/none.py", "--config: there is no file configs/none.py."),
        ("--config configs/none.py --config.batch=3", "--config: there is no file configs/none.py"),
        ("--config configs", "--config: there is no file configs."),
        (
            "--config configs/digits.py:none",
            "(after the colon of --config) = 'none' is not known; known:",
        ),
        ("", "--config is missing, e.g. --config=configs/digits.py"),
        ("--config=", "--config is missing, e.g. --config=configs/digits.py"),
        ("--workdir=x", "--config is missing, e.g. --config=configs/digits.py"),
    ],
)
def test_wrong_config_flags_get_one_message_in_both_spellings(flags, message):
    done = main(*flags.split())
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_preset_of_a_config_without_presets_is_rejected(tmp_path):
    file = tmp_path / "plain.py"
    file.write_text(
        "from simjax import config\n\n\ndef get_config():\n    return config.Config()\n"
    )
    done = main(f"--config={file}:sid")
    assert done.returncode == 1
    assert done.stderr == f"simjax: --config: {file} has no presets; leave out :sid.\n"


def test_the_fields_in_the_help_of_config_exist():
    named = re.findall(r"--config\.([a-z_.]+)=", command_line.flags.FLAGS["config"].help)
    assert named and set(named) <= set(config.known_fields())
