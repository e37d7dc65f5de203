"""Commands and Python examples of every README.md: valid flags, run or listed in ELSEWHERE.

tests/whole_runs/test_readme.py runs them.
"""

import collections
import re

import pytest

from simjax.__main__ import COMMANDS
from tests.helpers import readme_commands as readme
from tests.helpers.command import ROOT

ALL = readme.all_commands()
OURS = [command for command in ALL if readme.RUNNABLE.match(command.text)]
HERE = [command for command in ALL if not readme.reason(command.text)]
PYTHON = [block for path in readme.readmes() for block in readme.blocks(path.read_text(), "python")]
DIGITS = "python -m simjax.main --config=configs/digits.py"
INVALID = {  # command -> substring of the error
    f"{DIGITS} --config.stepz=3": "stepz",
    f"{DIGITS} --config.steps=few": "steps",
    f"{DIGITS} --config.loss.alpha=0.7": "loss.alpha",
    "python -m simjax sample --sauce=runs/digits": "sauce",
    "python -m simjax sample --source=runs/digits --count=0": "count",
    "python -m simjax smaple --source=runs/digits": "command smaple",
    "python notebooks/compare.py --steps=x": "refused: 2",
    "JAX_PLATFORMS=cpu python -m simjax port": "expected one source",
}


def listed(commands) -> str:
    return "\n".join(map(str, commands))


def test_every_command_of_simjax_is_in_a_readme():
    named = {command.program for command in OURS if "-m simjax " in command.text}
    assert named == set(COMMANDS), "commands in READMEs != commands in simjax/__main__.py"
    assert len(HERE) >= 8, listed(HERE)
    assert HERE[0].text == readme.MAIN, f"no README has {readme.MAIN!r}, which others need"


def test_a_command_is_run_or_listed_with_a_reason():
    other = [command for command in HERE if not readme.RUNNABLE.match(command.text)]
    hint = "not a command of simjax: fix it, or add a pattern and a reason to ELSEWHERE in"
    assert not other, f"{hint} tests/helpers/readme_commands.py:\n{listed(other)}"
    piped = [command for command in HERE if readme.OPERATORS & set(command.words)]
    assert not piped, f"join commands with && only:\n{listed(piped)}"


def test_distillations_have_different_run_directories():
    shared = collections.defaultdict(list)
    for command in HERE:
        if command.run_directory and readme.MY_CONFIG not in command.text:
            shared[command.run_directory].append(command)
    wrong = [f"{name}:\n{listed(each)}" for name, each in shared.items() if len(each) > 1]
    hint = "same run directory, but a run refuses other flags; add --workdir"
    assert not wrong, f"{hint}:\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("known", "texts"),
    [
        (readme.ELSEWHERE, [command.text for command in ALL]),
        (readme.ELSEWHERE_PYTHON, PYTHON),
    ],
    ids=["commands", "python"],
)
def test_every_pattern_of_elsewhere_matches(known, texts):
    idle = [pattern for pattern in known if not any(re.search(pattern, text) for text in texts)]
    assert not idle, f"no command matches; remove from tests/helpers/readme_commands.py: {idle}"


def test_flags_of_commands_are_valid(tmp_path):
    messages = readme.flag_errors(OURS, readme.make_clone(tmp_path))
    pairs = zip(OURS, messages, strict=True)
    refused = [f"{command}\n  {message}" for command, message in pairs if message]
    assert not refused, "\n".join(refused)


def test_invalid_flags_are_found(tmp_path):
    commands = [readme.Command("README.md", tuple(text.split())) for text in INVALID]
    messages = readme.flag_errors(commands, readme.make_clone(tmp_path))
    for expected, message in zip(INVALID.values(), messages, strict=True):
        assert expected in message


def test_lines_and_inline_code_become_commands(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text(
        "`python -m simjax\nport NAME`, `python -m simjax.main` or `python -m simjax port ...`.\n"
        "```bash\npip install -e . && python -m simjax port x  # a comment\n"
        "python -m simjax sample \\\n    --prompt='an 8 # 9'\n"
        "docker build - <<'END'\nRUN python\nEND\n```\n```python\nimport simjax\n```\n"
    )
    found = [command.text for command in readme.commands_of(tmp_path / "README.md")]
    assert found == [
        "pip install -e .",
        "python -m simjax port x",
        "python -m simjax sample --prompt=an 8 # 9",
        "docker build -",
        "python -m simjax port NAME",
    ]
    assert readme.python_of(tmp_path / "README.md") == ["import simjax\n"]


@pytest.mark.parametrize("path", readme.readmes(), ids=lambda path: str(path.relative_to(ROOT)))
def test_python_examples_compile(path):
    for block in readme.blocks(path.read_text(), "python"):
        compile(block, str(path), "exec")
