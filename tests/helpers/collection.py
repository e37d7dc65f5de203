"""Collects recorded reference cases from a directory, and the reason for each unsupported one.

Cases are read from the files: adding a file of a known kind to the directory adds its cases.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

# The ported parts. Recorded cases of other parts are deselected and listed in the test header.
SUPPORTED_NETWORKS = ("SongUNet", "DhariwalUNet")
SUPPORTED_WRAPPERS = ("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond")
SUPPORTED_TRANSFORMERS = {"mlp_ratio": 4.0, "pred_sigma": True}
# Names of sampler parts: reference -> simjax.
SUPPORTED_LADDERS = {"edm": "karras", "vp": "vp", "ve": "ve", "iddpm": "iddpm"}  # discretization
SUPPORTED_PATHS = {("linear", "none"): "edm", ("vp", "vp"): "vp", ("ve", "none"): "ve"}
SUPPORTED_SOLVERS = ("heun", "euler")
SUPPORTED_AUGMENTATION = ("p", "xflip", "yflip", "rotate_int", "translate_int", "scale")
SUPPORTED_AUGMENTATION += ("rotate_frac", "aniso", "translate_frac", "brightness", "contrast")
SUPPORTED_AUGMENTATION += ("lumaflip", "hue", "saturation")  # with fixed strengths


@dataclasses.dataclass(frozen=True)
class Case:
    """One recorded case: file, name inside it, and reason if unsupported."""

    path: pathlib.Path
    name: str = ""
    unsupported: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, (self.path.stem, self.name)))


class Fixture(NamedTuple):
    """A file pattern, and the function that splits a file into (name, reason if unsupported)."""

    pattern: str
    split: Callable[[Any], Iterator[tuple[str, str]]]


def cases(fixture: str, directory: pathlib.Path) -> list[Case]:
    """Every recorded case for tests with this fixture."""
    pattern, split = FIXTURES[fixture]
    found = []
    for path in sorted(directory.glob(pattern)):
        with np.load(path) as arrays:
            found += [Case(path, *case) for case in split(arrays)]
    return found


def report(directory: pathlib.Path) -> list[str]:
    """Lines of the test header: files that are checked, unsupported cases with reasons."""
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


def sampling_parts(options: dict[str, Any]) -> tuple[str, tuple[str, str], str]:
    """Discretization, (schedule, scaling) and solver of a sampler's keyword arguments."""
    path = (options.get("schedule", "linear"), options.get("scaling", "none"))
    return options.get("discretization", "edm"), path, options.get("solver", "heun")


def _json(arrays: Any, key: str) -> Any:
    return json.loads(str(arrays[key]))


def _network_reason(config: dict[str, Any]) -> str:
    if config["model_type"] not in SUPPORTED_NETWORKS:
        return f"{config['model_type']} is not ported"
    if config["precond"] not in SUPPORTED_WRAPPERS:
        return f"{config['precond']} around {config['model_type']} is not ported"
    return ""


def _sampling_reason(case: dict[str, Any]) -> str:
    parts = sampling_parts(case["kwargs"])
    known = (SUPPORTED_LADDERS, SUPPORTED_PATHS, SUPPORTED_SOLVERS)
    missing = [str(part) for part, table in zip(parts, known, strict=True) if part not in table]
    return ", ".join(missing) or _network_reason(case["config"])


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


def _augmentation_cases(arrays: Any) -> Iterator[tuple[str, str]]:
    for name, case in _json(arrays, "cases").items():
        unknown = sorted(case["kwargs"].keys() - set(SUPPORTED_AUGMENTATION))
        yield name, f"options {', '.join(unknown)}" if unknown else ""


def _tables(arrays: Any) -> Iterator[tuple[str, str]]:
    if "round/sigma" in arrays.files:
        yield "", ""


def _transformer(arrays: Any) -> Iterator[tuple[str, str]]:
    values = _json(arrays, "config")
    unknown = [
        f"{name} = {values[name]}"
        for name, known in SUPPORTED_TRANSFORMERS.items()
        if values.get(name, known) != known
    ]
    yield "", ", ".join(unknown)


FIXTURES = {
    "network_case": Fixture("net_*.npz", _whole),
    "table_case": Fixture("net_*.npz", _tables),
    "sid_loss_case": Fixture("loss_sid*.npz", _whole),
    "sida_case": Fixture("sida*.npz", _whole),
    "sid_generator_case": Fixture("loss_sid*.npz", _generator_cases),
    "diff_instruct_loss_case": Fixture("loss_diff_instruct*.npz", _whole),
    "edm_loss_case": Fixture("loss_edm*.npz", _loss_cases),
    "sampling_case": Fixture("samplers*.npz", _sampling_cases),
    "sid_trajectory_case": Fixture("trajectory_sid*.npz", _whole),
    "diff_instruct_trajectory_case": Fixture("trajectory_diff_instruct*.npz", _whole),
    "augment_case": Fixture("augment*.npz", _augmentation_cases),
    "metrics_case": Fixture("metrics*.npz", _features),
    "inception_case": Fixture("inception*.npz", _features),
    "dit_case": Fixture("dit*.npz", _transformer),
    "sit_case": Fixture("sit*.npz", _transformer),
    "pixart_case": Fixture("pixart*.npz", _transformer),
    "sim_one_step_case": Fixture("sim_one_step*.npz", _transformer),
}
