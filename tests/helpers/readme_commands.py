"""Finds, checks and runs the commands and Python examples of every README.md.

A command is a line of a ```bash block, or inline code `python -m simjax ...` or `python
notebooks/...` with arguments; inline code that contains "..." is skipped. Commands run from the
repository's root. my_config.py stands for the README's own Python example with a get_config.
"""

import dataclasses
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers.command import ROOT

COPIED = ("configs", "launch", "notebooks")  # folders that commands read
FOLDERS = ("configs", "launch", "notebooks", "simjax", "tests")
MAIN = "python -m simjax.main --config=configs/digits.py"  # runs first; other commands read its run
RUN_OF_MAIN = "runs/digits"
MY_CONFIG = "my_config.py"

# Commands that are not run: pattern -> reason. Every pattern must match a command in some README.
ELSEWHERE = {
    r"^pip install|^pytest|^\.ci/run|^git |^ruff |^tensorboard ": "set-up, tests, servers",
    r"(^| )launch/|^docker |^sbatch |^kubectl |^gcloud ": "cloud; tests/test_launch.py",
    r"^python notebooks/execute\.py": "minutes; .ci/run executes the notebooks",
    r"^python notebooks/compare\.py (?!--plot)": "minutes; .ci/run, tests/test_compare.py",
    r"emoji|fashion": "a font or a download, hours; tests/test_emoji.py, tests/test_fashion.py",
    r"--topology": "libtpu; tests/with_libtpu",
    r"benchmark --config=configs/cifar10": "an accelerator or an hour",
    r"cifar10|imagenet|ffhq|afhq|pixart512|DiT-XL|SiT-XL|PixArt-XL": "downloaded weights",
    # Upper-case placeholders: FOLDER, idx:DIR, configs/NAME.py.
    r"(?<![\w-])[A-Z][A-Z0-9_]+(?![\w-])|gs://|sid\.pkl|sim\.pth": "the user's files",
}
ELSEWHERE_PYTHON: dict[str, str] = {}  # likewise for Python examples

# Shortened commands: additional flags per program, replaced words, replaced Python.
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
SHORTER_PYTHON = {r"\.train\(\d+\)": ".train(2)"}

VARIABLE = re.compile(r"([A-Z_]+)=(.*)")  # JAX_PLATFORMS=cpu python ...
RUNNABLE = re.compile(r"([A-Z_]+=\S* )*(python -m simjax(\.main)? |python notebooks/\w+\.py)")
INLINE = re.compile(r"python -m simjax(\.main)? .*\S|python notebooks/\w+\.py .*\S")
OPERATORS = {"|", "||", ";", "&", ">", ">>", "<", "<<"}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of a README, split into words."""

    readme: str  # relative to the repository's root
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def __str__(self) -> str:
        return f"{self.readme}: {self.text}"

    @property
    def program(self) -> str:
        """simjax.main, NAME of `python -m simjax NAME`, or a script."""
        words = [word for word in self.argv if word not in ("-m", "simjax")]
        return words[0] if words else ""

    @property
    def run_directory(self) -> str:
        """Run directory of a distillation; empty for other programs."""
        flags = dict(word.lstrip("-").split("=", 1) for word in self.words if "=" in word)
        if self.program != "simjax.main" or "config" not in flags:
            return ""
        name = Path(flags["config"].replace(".py:", "_")).name.removesuffix(".py")
        return flags.get("workdir", f"runs/{name}")

    @property
    def argv(self) -> list[str]:
        """Arguments of the Python interpreter."""
        return list(self.words[len(self.variables) + 1 :])

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables set in front of the program."""
        leading = itertools.takewhile(bool, map(VARIABLE.fullmatch, self.words))
        return dict(match.groups() for match in leading)


def readmes() -> list[Path]:
    """Every README.md of the repository, the root's first."""
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("README.md"))]
    cards = ROOT / "notebooks" / "runs"  # model cards, if notebooks were executed in place
    return [ROOT / "README.md", *(path for path in found if not path.is_relative_to(cards))]


def blocks(text: str, language: str) -> list[str]:
    """Code blocks of a language in Markdown.

    >>> blocks("```bash\\nls\\n```", "bash")
    ['ls\\n']
    """
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)


def commands_of(path: Path) -> list[Command]:
    """Commands of a README in order: code blocks, then inline code."""
    text, readme = path.read_text(), str(path.relative_to(ROOT))
    lines = [line for block in blocks(text, "bash") for line in _lines(block)]
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    spans = [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]
    lines += [span for span in spans if INLINE.fullmatch(span) and "..." not in span]
    found = []
    for line in lines:
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise ValueError(f"{readme}: {line}: {error}") from error
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            found.append(Command(readme, tuple(words[:end])))
            words = words[end + 1 :]
    return list(dict.fromkeys(command for command in found if command.words))


def _lines(block: str) -> list[str]:
    """Lines of a shell block, with continuations joined and here-documents removed."""
    block = re.sub(r"<<-?\s*(['\"]?)(\w+)\1[^\n]*\n.*?^\s*\2$", "", block, flags=re.S | re.M)
    return block.replace("\\\n", " ").splitlines()


def all_commands() -> list[Command]:
    """Unique commands of all READMEs, MAIN first."""
    first: dict[tuple[str, str], Command] = {}
    for path in readmes():
        for command in commands_of(path):
            owner = command.readme if MY_CONFIG in command.text else ""
            first.setdefault((owner, command.text), command)
    return sorted(first.values(), key=lambda command: command.text != MAIN)


def reason(text: str, known: dict[str, str] = ELSEWHERE) -> str:
    """Reason why a command or example is not run; empty if it is run."""
    return next((why for pattern, why in known.items() if re.search(pattern, text)), "")


def python_of(path: Path) -> list[str]:
    """Python examples of a README, without those of ELSEWHERE_PYTHON."""
    found = blocks(path.read_text(), "python")
    return [block for block in found if not reason(block, ELSEWHERE_PYTHON)]


def make_clone(folder: Path) -> Path:
    """Copies the folders that commands read; returns `folder`."""
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__", "*.ipynb", "images", "runs")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


def write_my_config(path: Path, folder: Path) -> None:
    """Writes the README's first example with a get_config as my_config.py."""
    examples = [block for block in blocks(path.read_text(), "python") if "def get_config" in block]
    (folder / MY_CONFIG).unlink(missing_ok=True)
    if examples:
        (folder / MY_CONFIG).write_text(examples[0])


def flag_errors(commands: list[Command], clone: Path) -> list[str]:
    """Parses each command's flags with its program's parser; error messages, empty if valid.

    simjax.main also checks the config, as at the start of a run. One process, one fork per command.
    """
    jobs = []
    for number, command in enumerate(commands):
        folder = clone / f"{number}"
        folder.mkdir()
        for name in COPIED:
            (folder / name).symlink_to(clone / name)
        write_my_config(ROOT / command.readme, folder)
        words = [re.sub(r"=[A-Z]$", "=1", word) for word in command.argv]  # --steps=N
        words = [word.replace("configs/NAME.py", "configs/digits.py") for word in words]
        jobs.append({"folder": str(folder), "argv": words})
    program = [sys.executable, str(Path(__file__).with_name("parse_flags.py"))]
    done = subprocess.run(
        program, input=json.dumps(jobs), capture_output=True, text=True, env=_environment()
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run(command: Command, clone: Path, *, as_written: bool) -> subprocess.CompletedProcess:
    """Runs a command in the clone; shortened by SHORT unless as_written.

    as_written also drops conftest.py's XLA flags: a finished run's programs are in the compilation
    cache without them.
    """
    write_my_config(ROOT / command.readme, clone)
    if MY_CONFIG in command.text and command.run_directory:  # left by another README
        shutil.rmtree(clone / command.run_directory, ignore_errors=True)
    flags = [SHORTER.get(word, word) for word in command.argv]
    environment = _environment() | command.variables
    if as_written:
        environment.pop("XLA_FLAGS", None)
    else:
        flags += SHORT.get(command.program, [])
    return subprocess.run(
        [sys.executable, *flags], cwd=clone, capture_output=True, text=True, env=environment
    )


def run_python(path: Path, clone: Path) -> subprocess.CompletedProcess:
    """Runs a README's Python examples in order, as one program."""
    program = "\n\n".join(python_of(path))
    for pattern, shorter in SHORTER_PYTHON.items():
        program = re.sub(pattern, shorter, program)
    (clone / "readme_example.py").write_text(program)
    command = [sys.executable, "readme_example.py"]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, env=_environment())


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}
