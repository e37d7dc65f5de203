"""Options of the test run: where the recorded reference numbers are, and which of them are checked.

`pytest tests/parity --golden=DIR` checks every file of a known kind in DIR instead of tests/golden.
"""

import atexit
import gc
import importlib.util
import os
import pathlib
import shutil
import tempfile

# Before anything imports JAX. Most of a test's time is compilation: skip LLVM's optimisations, and
# compile a program once, however small, for both workers and for every process that a test starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers inherit what the first process made
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="simjax-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import pytest

from tests.helpers import collection

# Files written by torch itself; `pip install -e ".[parity]"` brings it, .ci/run runs these.
HAS_TORCH = importlib.util.find_spec("torch") is not None
HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None  # .[tpu], in a place of its own
HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None  # .[tensorboard]
collect_ignore = [] if HAS_TORCH else ["with_torch"]
collect_ignore += [] if HAS_LIBTPU else ["with_libtpu"]
collect_ignore += [] if HAS_TENSORFLOW else ["with_tensorflow"]

DEFAULT_GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """Nothing of the user's cache is read, and nothing is left in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_addoption(parser):
    parser.addoption(
        "--golden",
        default=str(DEFAULT_GOLDEN),
        metavar="DIR",
        help="directory of recorded reference numbers (default: tests/golden)",
    )


def pytest_report_header(config):
    torch = [] if HAS_TORCH else ["torch is not installed: tests/with_torch is left out"]
    libtpu = [] if HAS_LIBTPU else ["libtpu is not installed: tests/with_libtpu is left out"]
    tensorflow = ["tensorflow is not installed: tests/with_tensorflow is left out"]
    tensorflow = [] if HAS_TENSORFLOW else tensorflow
    return collection.report(_directory(config)) + torch + libtpu + tensorflow


def pytest_generate_tests(metafunc):
    """A test that takes a fixture of collection.FIXTURES runs once for each recorded case."""
    directory = _directory(metafunc.config)
    for fixture in sorted(set(metafunc.fixturenames) & set(collection.FIXTURES)):
        cases = collection.cases(fixture, directory)
        if not cases and directory == DEFAULT_GOLDEN.resolve():
            pytest.fail(f"{directory} has no {collection.FIXTURES[fixture].pattern}", pytrace=False)
        metafunc.parametrize(fixture, cases, ids=str)


def pytest_collection_finish(session):
    """What collection made stays: Python's garbage collector need not look through it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


def pytest_collection_modifyitems(config, items):
    """Cases of networks or samplers that are not ported yet are deselected; the header says why."""
    unsupported = [item for item in items if _unsupported(item)]
    items[:] = [item for item in items if not _unsupported(item)]
    if unsupported:
        config.hook.pytest_deselected(items=unsupported)


def _unsupported(item) -> bool:
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return any(isinstance(p, collection.Case) and p.unsupported for p in parameters)


def _directory(config) -> pathlib.Path:
    directory = pathlib.Path(config.getoption("--golden")).resolve()
    if not directory.is_dir():
        raise pytest.UsageError(f"--golden={directory} is not a directory.")
    return directory
