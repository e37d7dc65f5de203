"""Runs the commands and Python examples of every README.md; long ones are cut short.

README_RUN=FOLDER uses a finished run of the first command: that command then only prints its
report, and commands that read the run are not cut short.
"""

import os
import shutil

import pytest

from tests.helpers import readme_commands as readme

pytestmark = pytest.mark.whole_runs

FINISHED = os.environ.get("README_RUN")
HERE = [command for command in readme.all_commands() if not readme.reason(command.text)]


def output(done) -> str:
    return f"{done.stdout}\n{done.stderr}"


def test_commands_and_python_examples_run(tmp_path):
    clone = readme.make_clone(tmp_path)
    if FINISHED:
        shutil.copytree(FINISHED, clone / readme.RUN_OF_MAIN)
    for command in HERE:
        reads_main = command == HERE[0] or f"--source={readme.RUN_OF_MAIN}" in command.words
        done = readme.run(command, clone, as_written=bool(FINISHED) and reads_main)
        assert done.returncode == 0, f"{command}\n{output(done)}"
        if FINISHED and command == HERE[0]:
            assert f"{readme.RUN_OF_MAIN} is finished" in done.stdout
    for path in readme.readmes():
        if readme.python_of(path):
            done = readme.run_python(path, clone)
            assert done.returncode == 0, f"Python of {path}\n{output(done)}"
