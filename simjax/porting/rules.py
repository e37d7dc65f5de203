"""Name maps with an exact cover: every foreign tensor has a rule, every parameter is filled once.

A map is a list of Rules (porting/maps/*). Nothing here reads files.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from simjax.config import ConfigError


def oihw_to_hwio(kernel: np.ndarray) -> np.ndarray:
    """PyTorch convolution kernel to NHWC's."""
    return kernel.transpose(2, 3, 1, 0)


def transposed(kernel: np.ndarray) -> np.ndarray:
    """PyTorch linear (out, in) to (in, out)."""
    return kernel.T


def unchanged(array: np.ndarray) -> np.ndarray:
    """The layouts agree."""
    return array


class Rule(NamedTuple):
    """Foreign names matching `pattern` (whole) go to `path`, converted; path None drops them."""

    pattern: str
    path: str | None
    convert: Callable[[np.ndarray], np.ndarray] = unchanged


def apply(
    rules: Sequence[Rule], tensors: Mapping[str, np.ndarray], template: Any
) -> dict[str, Any]:
    """Fills `template`, a nested dict of arrays or shapes, from foreign tensors.

    Returns:
      A nested dict of float32 NumPy arrays with the template's structure and shapes.

    Raises:
      ConfigError: naming every tensor without a rule, every parameter left unfilled or filled
        twice, and every wrong shape, all at once.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in _flatten(template)}
    filled: dict[str, np.ndarray] = {}
    problems = []
    for name, tensor in tensors.items():
        rule = next((rule for rule in rules if re.fullmatch(rule.pattern, name)), None)
        if rule is None:
            problems.append(f"no rule for tensor {name} {tensor.shape}")
            continue
        if rule.path is None:
            continue
        path = re.fullmatch(rule.pattern, name).expand(rule.path)
        try:
            value = rule.convert(np.asarray(tensor, np.float32))
        except ValueError:  # not even of the right number of dimensions
            problems.append(f"{name} {tensor.shape} cannot be laid out as {path}")
            continue
        if path not in shapes:
            problems.append(f"{name} maps to {path}, which this network does not have")
        elif path in filled:
            problems.append(f"{name} maps to {path}, which is filled already")
        elif value.shape != shapes[path]:
            problems.append(f"{name} arrives at {path} as {value.shape}, expected {shapes[path]}")
        else:
            filled[path] = value
    problems += [f"nothing fills {path} {shapes[path]}" for path in shapes if path not in filled]
    if problems:
        lines = "\n  ".join(problems)
        raise ConfigError(
            f"{len(problems)} misfits between its {len(tensors)} tensors and the network:\n"
            f"  {lines}\n"
            "Names are mapped in simjax/porting/maps; a shape that differs means that the weights "
            "are those of another network than the file says."
        )
    return _unflatten(filled)


def _flatten(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(tree, Mapping):
        return [(path, tree)]
    nodes = ((f"{path}/{key}".strip("/"), node) for key, node in tree.items())
    return [pair for name, node in nodes for pair in _flatten(node, name)]


def _unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree
