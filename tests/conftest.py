"""Pytest configuration: JAX settings, optional packages, --golden.

`pytest tests/parity --golden=DIR` checks every file of a known kind in DIR instead of tests/golden.
"""

import atexit
import gc
import importlib.util
import os
import pathlib
import shutil
import signal
import tempfile

# Must run before JAX is imported. Most test time is compilation: disable LLVM optimisations and
# share one compilation cache, without size or time thresholds, between workers and subprocesses.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers inherit the first process's
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="simjax-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import pytest

from tests.helpers import collection

# Shells start background jobs with SIGINT ignored; tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

NEEDS = {  # tests skipped if their package is missing; .ci/run has all but libtpu
    "with_torch": "torch",  # .[parity]
    "with_tensorflow": "tensorflow",  # .[tensorboard]
    "with_libtpu": "libtpu",  # .[tpu], in a separate environment
    "whole_runs/test_bucket.py": "google.cloud.storage",  # .[gcs]
}


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # parent package missing
        return False


MISSING = {path: package for path, package in NEEDS.items() if not _is_installed(package)}
collect_ignore = list(MISSING)

DEFAULT_GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="session", autouse=True)
def isolated_cache(tmp_path_factory):
    """Isolates tests from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_addoption(parser):
    parser.addoption(
        "--golden",
        default=str(DEFAULT_GOLDEN),
        metavar="DIR",
        help="directory of recorded reference arrays (default: tests/golden)",
    )


def pytest_report_header(config):
    missing = [
        f"{package} is not installed: tests/{path} is skipped" for path, package in MISSING.items()
    ]
    return collection.report(_directory(config)) + missing


def pytest_generate_tests(metafunc):
    """Parametrizes fixtures of collection.FIXTURES over the recorded cases."""
    directory = _directory(metafunc.config)
    for fixture in sorted(set(metafunc.fixturenames) & set(collection.FIXTURES)):
        cases = collection.cases(fixture, directory)
        if not cases and directory == DEFAULT_GOLDEN.resolve():
            pytest.fail(f"{directory} has no {collection.FIXTURES[fixture].pattern}", pytrace=False)
        metafunc.parametrize(fixture, cases, ids=str)


def pytest_collection_finish(session):
    """Freezes collected objects, so that garbage collection skips them."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


def pytest_collection_modifyitems(config, items):
    """Deselects cases of networks or samplers that are not ported; the header lists them."""
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
