"""What the commands share: help, --config in both spellings, flags that have no effect."""

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
def test_the_table_of_uses_has_every_flag_of_a_command(command):
    source = (COMMANDS / f"{command}.py").read_text()
    table = re.search(r"^USES = .*?^[})](  #.*?)?$", source, re.MULTILINE | re.DOTALL)[0]
    defined = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)
    assert set(re.findall(r'"(\w+)"', table)) == set(defined)


def test_a_command_is_spelled_without_where_its_results_go(monkeypatch):
    given = ["x", "--config", "a.py", "--out=b", "--steps=2", "--out", "c", "-out=d", "--outer=e"]
    monkeypatch.setattr(sys, "argv", given)
    said = command_line.spelled("aot", without=("out",))
    assert said == "python -m simjax aot --config a.py --steps=2 --outer=e"


def main(*flags: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Which imports no JAX before its flags are known to be good: a moment."""
    command = [sys.executable, "-m", "simjax.main", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_help_shows_config_and_is_no_failure():
    for flag in ("--help", "-h"):
        done = main("--config=configs/digits.py", flag)
        assert (done.returncode, done.stderr) == (0, "")
        assert "--config: Python file whose get_config()" in done.stdout
        assert "--workdir: " in done.stdout


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
def test_a_config_is_given_with_a_space_or_an_equals_sign(flags, message):
    done = main(*flags.split())
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_method_of_a_config_without_methods_is_refused(tmp_path):
    file = tmp_path / "plain.py"
    file.write_text(
        "from simjax import config\n\n\ndef get_config():\n    return config.Config()\n"
    )
    done = main(f"--config={file}:sid")
    assert done.returncode == 1
    assert done.stderr == f"simjax: --config: {file} has no methods; leave out :sid.\n"


def test_the_field_that_help_sets_exists():
    named = re.findall(r"--config\.([a-z_.]+)=", command_line.flags.FLAGS["config"].help)
    assert named and set(named) <= set(config.known_fields())
