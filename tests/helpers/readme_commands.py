"""Commands and Python examples of every README.md: found, listed as not runnable, or run.

A command is a line of a ```bash block, or inline code that starts with `python -m simjax` and has
arguments; inline code with "..." is a template and is skipped. Commands run from the repository's
root. In a README, my_config.py is its Python example with a get_config.
"""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers.command import ROOT

COPIED = ("configs", "launch", "notebooks")  # read by commands
FOLDERS = ("configs", "launch", "notebooks", "simjax", "tests")
MAIN = "python -m simjax.main --config=configs/digits.py"  # runs first: others read its run
RUN_OF_MAIN = "runs/digits"
MY_CONFIG = "my_config.py"

# Commands that are not run: pattern -> reason. The first match counts, every pattern must match.
ELSEWHERE = {
    r"^pip install|^pytest|^\.ci/run|^git |^ruff |^tensorboard ": "set-up, tests, servers",
    r"^(bash )?launch/|^docker |^sbatch |^kubectl |^gcloud ": "machines; tests/test_launch.py",
    r"^python notebooks/execute\.py": "minutes; .ci/run executes the notebooks",
    r"^python notebooks/compare\.py --(quick|out)": "minutes; .ci/run, tests/test_compare.py",
    r"emoji": "a colour font, and hours; tests/test_emoji.py",
    r"--topology": "libtpu; tests/with_libtpu",
    r"benchmark --config=configs/cifar10": "an accelerator, or an hour",
    r"cifar10|imagenet|ffhq|afhq|pixart512|DiT-XL|SiT-XL|PixArt-XL": "weights from the network",
    # Capitals stand for a name that the reader fills in: FOLDER, idx:DIR, configs/NAME.py.
    r"(?<![\w-])[A-Z][A-Z0-9_]+(?![\w-])|gs://|sid\.pkl|sim\.pth": "files of the reader",
}
ELSEWHERE_PYTHON: dict[str, str] = {}  # the same for Python examples

# What makes a command fast enough to run: flags by program, replacements of words.
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

RUNNABLE = re.compile(r"python -m simjax(\.main)? |simjax |python notebooks/\w+\.py")
INLINE = re.compile(r"python -m simjax(\.main)? .*\S|python notebooks/\w+\.py .*\S")
OPERATORS = {"|", "||", ";", "&", ">", ">>", "<", "<<"}


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of a README, as words."""

    readme: str  # relative to the repository's root
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def __str__(self) -> str:
        return f"{self.readme}: {self.text}"

    @property
    def program(self) -> str:
        """The key of SHORT: simjax.main, NAME of `simjax NAME`, or a script."""
        words = [word for word in self.words if word not in ("python", "-m", "simjax")]
        return words[0] if words else ""

    @property
    def run_directory(self) -> str:
        """Where a distillation is written; empty for other programs."""
        flags = dict(word.lstrip("-").split("=", 1) for word in self.words if "=" in word)
        if self.program != "simjax.main" or "config" not in flags:
            return ""
        name = Path(flags["config"].replace(".py:", "_")).name.removesuffix(".py")
        return flags.get("workdir", f"runs/{name}")

    @property
    def argv(self) -> list[str]:
        """Arguments of the Python interpreter."""
        words = list(self.words)
        return words[1:] if words[0] == "python" else ["-m", *words]


def readmes() -> list[Path]:
    """Every README.md of the repository; folders may have none."""
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("README.md"))]
    return [ROOT / "README.md", *found]


def blocks(text: str, language: str) -> list[str]:
    """Contents of Markdown's code blocks in a language.

    >>> blocks("```bash\\nls\\n```", "bash")
    ['ls\\n']
    """
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)


def commands_of(path: Path) -> list[Command]:
    """Commands of one README, in order, blocks first."""
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
    """Lines of a shell block: continued ones joined, here-documents removed."""
    block = re.sub(r"<<-?\s*(['\"]?)(\w+)\1[^\n]*\n.*?^\s*\2$", "", block, flags=re.S | re.M)
    return block.replace("\\\n", " ").splitlines()


def all_commands() -> list[Command]:
    """Commands of all READMEs without repetitions: MAIN first, then the root's."""
    first: dict[tuple[str, str], Command] = {}
    for path in readmes():
        for command in commands_of(path):
            owner = command.readme if MY_CONFIG in command.text else ""
            first.setdefault((owner, command.text), command)
    return sorted(first.values(), key=lambda command: command.text != MAIN)


def reason(text: str, known: dict[str, str] = ELSEWHERE) -> str:
    """Why a command or an example is not run; empty if it is."""
    return next((why for pattern, why in known.items() if re.search(pattern, text)), "")


def python_of(path: Path) -> list[str]:
    """Python examples of a README that are run."""
    found = blocks(path.read_text(), "python")
    return [block for block in found if not reason(block, ELSEWHERE_PYTHON)]


def make_clone(folder: Path) -> Path:
    """Copies the files that commands read into an empty folder; returns it."""
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__", "*.ipynb", "images", "runs")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


def write_my_config(path: Path, folder: Path) -> None:
    """Writes the README's example of a config as my_config.py, if there is one."""
    examples = [block for block in blocks(path.read_text(), "python") if "def get_config" in block]
    (folder / MY_CONFIG).unlink(missing_ok=True)
    if examples:
        (folder / MY_CONFIG).write_text(examples[0])


def flag_errors(commands: list[Command], clone: Path) -> list[str]:
    """Parses each command's flags as its program does; one message each, empty if valid.

    simjax.main also checks the config as at the start of a run. One process, a fork per command.
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
    """Runs a command in the clone, shortened unless as_written.

    As written also means without the XLA flags of conftest.py, which would compile everything anew.
    """
    write_my_config(ROOT / command.readme, clone)
    if MY_CONFIG in command.text and command.run_directory:  # other READMEs have one too
        shutil.rmtree(clone / command.run_directory, ignore_errors=True)
    flags = [SHORTER.get(word, word) for word in command.argv]
    environment = _environment()
    if as_written:
        environment.pop("XLA_FLAGS", None)
    else:
        flags += SHORT.get(command.program, [])
    return subprocess.run(
        [sys.executable, *flags], cwd=clone, capture_output=True, text=True, env=environment
    )


def run_python(path: Path, clone: Path) -> subprocess.CompletedProcess:
    """Runs all Python examples of a README in order, as one program."""
    program = "\n\n".join(python_of(path))
    for pattern, shorter in SHORTER_PYTHON.items():
        program = re.sub(pattern, shorter, program)
    (clone / "readme_example.py").write_text(program)
    command = [sys.executable, "readme_example.py"]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, env=_environment())


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}
