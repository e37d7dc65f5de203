"""Which recorded cases a directory holds, and which of them simjax can be checked against.

Everything is read from the files: a further file of a known kind is checked by dropping it there.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

# What is ported so far. A recorded case of anything else is deselected and named in the header.
SUPPORTED_NETWORKS = ("SongUNet",)
SUPPORTED_WRAPPERS = ("EDMPrecond", "VPPrecond", "VEPrecond")
SUPPORTED_SAMPLING = {
    "wrapper": ("EDMPrecond",),
    "discretization": ("edm",),
    "schedule": ("linear",),
    "scaling": ("none",),
    "solver": ("heun",),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One recorded case: a file, a name inside it, and why it cannot be checked yet, if so."""

    path: pathlib.Path
    name: str = ""
    unsupported: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, (self.path.stem, self.name)))


class Fixture(NamedTuple):
    """Files of one kind, and how each is cut into (name, unsupported because)."""

    pattern: str
    split: Callable[[Any], Iterator[tuple[str, str]]]


def cases(fixture: str, directory: pathlib.Path) -> list[Case]:
    """Every recorded case for tests that take `fixture`."""
    pattern, split = FIXTURES[fixture]
    found = []
    for path in sorted(directory.glob(pattern)):
        with np.load(path) as arrays:
            found += [Case(path, *case) for case in split(arrays)]
    return found


def report(directory: pathlib.Path) -> list[str]:
    """Lines for the header of a run: what is checked and what is not, and why."""
    everything = [case for fixture in FIXTURES for case in cases(fixture, directory)]
    checked = sorted({case.path.name for case in everything if not case.unsupported})
    other = sorted({p.name for p in directory.glob("*.npz")} - {c.path.name for c in everything})
    empty = sorted({f.pattern for f in FIXTURES.values() if not any(directory.glob(f.pattern))})
    lines = [f"golden: {directory}", f"golden, checked: {', '.join(checked) or 'nothing'}"]
    lines += [
        f"golden, not supported yet: {case} ({case.unsupported})"
        for case in everything
        if case.unsupported
    ]
    lines += [f"golden, no test for: {', '.join(other)}"] if other else []
    lines += [f"golden, no file: {', '.join(empty)}"] if empty else []
    return lines


def _json(arrays: Any, key: str) -> Any:
    return json.loads(str(arrays[key]))


def _network_reason(config: dict[str, Any]) -> str:
    if config["model_type"] not in SUPPORTED_NETWORKS:
        return f"{config['model_type']} is not ported"
    if config["precond"] not in SUPPORTED_WRAPPERS:
        return f"{config['precond']} around {config['model_type']} is not ported"
    return ""


def _sampling_reason(case: dict[str, Any]) -> str:
    options = {"wrapper": case["precond"]} | case["kwargs"]
    for name, known in SUPPORTED_SAMPLING.items():
        if options.get(name, known[0]) not in known:
            return f"{name} {options[name]}"
    return _network_reason(case["config"])


def _whole(arrays: Any) -> Iterator[tuple[str, str]]:
    yield "", _network_reason(_json(arrays, "config"))


def _features(arrays: Any) -> Iterator[tuple[str, str]]:
    yield "", ""


def _generator_cases(arrays: Any) -> Iterator[tuple[str, str]]:
    reason = _network_reason(_json(arrays, "config"))
    for key in arrays.files:
        if match := re.fullmatch(r"(gen_alpha.*)/scalar", key):
            yield match[1], reason


def _loss_cases(arrays: Any) -> Iterator[tuple[str, str]]:
    for name, case in _json(arrays, "cases").items():
        yield name, _network_reason(case["config"])


def _sampling_cases(arrays: Any) -> Iterator[tuple[str, str]]:
    for name, case in _json(arrays, "cases").items():
        yield name, _sampling_reason(case)


FIXTURES = {
    "network_case": Fixture("net_*.npz", _whole),
    "sid_loss_case": Fixture("loss_sid*.npz", _whole),
    "sid_generator_case": Fixture("loss_sid*.npz", _generator_cases),
    "diff_instruct_loss_case": Fixture("loss_diff_instruct*.npz", _whole),
    "edm_loss_case": Fixture("loss_edm*.npz", _loss_cases),
    "sampling_case": Fixture("samplers*.npz", _sampling_cases),
    "sid_trajectory_case": Fixture("trajectory_sid*.npz", _whole),
    "diff_instruct_trajectory_case": Fixture("trajectory_diff_instruct*.npz", _whole),
    "metrics_case": Fixture("metrics*.npz", _features),
}
