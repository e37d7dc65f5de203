"""README's commands run as they are written there; the long ones are cut short by further flags.

README_RUN=FOLDER, what the first of them has made before: then it prints its report, and those that
read it read that one.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simjax.__main__ import COMMANDS
from tests.helpers.command import ROOT

pytestmark = pytest.mark.whole_runs

README = (ROOT / "README.md").read_text()
MAIN = "runs/digits"  # what the first command makes
FINISHED = os.environ.get("README_RUN")

# What a command needs that is not here: why it is left out.
ELSEWHERE = {
    r"benchmark --config=configs/cifar10": "an accelerator, or an hour",
    r"cifar10|imagenet|ffhq|DiT-XL|PixArt-XL": "weights from the network",
    r"sid\.pkl|sim\.pth|FOLDER|_FOLDER|CACHE": "weights or prompts of the reader's",
    r"--topology": "libtpu; tests/with_libtpu",
    r"idx:DIR": "data of the reader's",
    r"emoji": "a colour font, and hours; tests/test_emoji.py",
    r"gs://": "a bucket; tests/whole_runs/test_bucket.py",
    r"^pytest|^pip install": "these tests themselves",
    r"^tensorboard|xprof": "a server",
}
SHORT = {
    "simjax.main": [
        "--config.steps=20",
        "--config.teacher.steps=20",
        "--config.log_every=10",
        "--config.sample_every=10",
        "--config.checkpoint_every=10",
        "--config.evaluation.samples=200",
        "--config.evaluation.teacher_steps=(3,)",
        "--config.evaluation.features=('pixels',)",
    ],
    "benchmark": ["--repeats=2"],
    "probe": ["--noexplain"],
}
SHORTER = {"--count=50000": "--count=500"}


def commands() -> list[str]:
    """Every line of README's bash blocks that is a command, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in line.partition("#")[0].split("&&")]
    return [" ".join(part.split()) for part in parts if part]


def left_out(command: str) -> bool:
    return any(re.search(pattern, command) for pattern in ELSEWHERE)


HERE = [command for command in commands() if not left_out(command)]


def test_every_command_of_ours_is_known():
    named = set(re.findall(r"python -m simjax ([\w-]+)", "\n".join(commands())))
    assert named == set(COMMANDS)
    assert len(HERE) >= 8, HERE
    assert all(re.match(r"python -m simjax(\.main)? ", command) for command in HERE), HERE


def run(command: str, clone: Path, *, as_written: bool) -> subprocess.CompletedProcess:
    """As written means without the options of conftest.py too: they compile anew."""
    words = shlex.split(command)
    flags = [SHORTER.get(word, word) for word in words[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if as_written:
        environment.pop("XLA_FLAGS")
    else:
        name = words[3] if words[2] == "simjax" else words[2]
        flags += SHORT.get(name, [])
    return subprocess.run(
        [sys.executable, *flags], cwd=clone, capture_output=True, text=True, env=environment
    )


def test_they_run_one_after_another_and_so_does_its_python(tmp_path):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    if FINISHED:
        shutil.copytree(FINISHED, tmp_path / MAIN)
    for command in HERE:
        of_main = command == HERE[0] or f"--source={MAIN}" in command
        done = run(command, tmp_path, as_written=bool(FINISHED) and of_main)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if FINISHED and command == HERE[0]:
            assert f"{MAIN} is finished" in done.stdout
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    ours = [block for block in blocks if "simjax.load(" in block]
    assert ours
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for block in ours:
        program = block.replace("train(100)", "train(2)")
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, env=environment)
