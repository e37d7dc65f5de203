"""Name maps between foreign tensors (a checkpoint's) and our parameters.

A map (porting/maps/*) is a list of Rules (import only) or of Names (import and export). Every
foreign tensor must have a rule, and every parameter must be filled exactly once. Nothing here reads
files.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from simjax.errors import ConfigError

Convert = Callable[[np.ndarray], np.ndarray]


def oihw_to_hwio(kernel: np.ndarray) -> np.ndarray:
    """Converts a convolution kernel of PyTorch to that of NHWC images.

    >>> oihw_to_hwio(np.zeros((64, 3, 5, 5))).shape
    (5, 5, 3, 64)
    """
    return kernel.transpose(2, 3, 1, 0)


def hwio_to_oihw(kernel: np.ndarray) -> np.ndarray:
    """The inverse of `oihw_to_hwio`."""
    return kernel.transpose(3, 2, 0, 1)


def transposed(kernel: np.ndarray) -> np.ndarray:
    """Converts a linear layer's weight of PyTorch, (out, in), to (in, out)."""
    return kernel.T


def unchanged(array: np.ndarray) -> np.ndarray:
    """The identity, where both layouts are the same."""
    return array


class Layout(NamedTuple):
    """Conversions of an array from a foreign layout to ours and back."""

    to_ours: Convert
    to_foreign: Convert


UNCHANGED = Layout(unchanged, unchanged)
LINEAR = Layout(transposed, transposed)
CONVOLUTION = Layout(oihw_to_hwio, hwio_to_oihw)


class Rule(NamedTuple):
    """Maps foreign names that fully match `pattern` to `path`; None drops them.

    Args:
      pattern: regular expression; a group named `layer` indexes the first axis of the array at
        `path`.
      convert: conversion to our layout.
      part: (k, n): fills the k-th of n equal parts of the last axis.
      copies: several tensors may map to the same place, if they are equal.
    """

    pattern: str
    path: str | None
    convert: Convert = unchanged
    part: tuple[int, int] = (0, 1)
    copies: bool = False


class Name(NamedTuple):
    """A foreign name and our path, for import and export.

    "{}" in the name is the layer index. "{word}" in both the name and the path stands for the same
    letters, digits and underscores. With `copies`, all layers have equal tensors, which are one
    parameter of ours.
    """

    foreign: str
    path: str
    layout: Layout = UNCHANGED
    part: tuple[int, int] = (0, 1)
    copies: bool = False

    def rule(self) -> Rule:
        """The rule that imports such a tensor."""
        number = r"\d{1,4}" if self.copies else r"(?P<layer>\d{1,4})"
        pattern = _pattern(self.foreign).replace(r"\{\}", number)
        path = re.sub(r"\{(\w+)\}", r"\\g<\1>", self.path)
        return Rule(pattern, path, self.layout.to_ours, self.part, self.copies)


def _pattern(text: str) -> str:
    """Regular expression of a name or path, with a group per "{word}"."""
    return re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\w+)", re.escape(text))


def apply(
    rules: Sequence[Rule], tensors: Mapping[str, np.ndarray], template: Any
) -> dict[str, Any]:
    """Fills `template`, a nested dict of arrays or shapes, from foreign tensors.

    Tensors are converted one by one: memory holds the result and one tensor in float32.

    >>> rules = [Rule(r"fc\\.weight", "fc/kernel", transposed)]
    >>> template = {"fc": {"kernel": np.empty((2, 1), np.float32)}}
    >>> apply(rules, {"fc.weight": np.array([[1.0, 2.0]])}, template)["fc"]["kernel"].tolist()
    [[1.0], [2.0]]

    Returns:
      A nested dict of NumPy arrays with the template's structure, shapes and dtypes.

    Raises:
      ConfigError: listing every tensor without a rule, every parameter left unfilled or filled
        twice, and every wrong shape, all at once.
    """
    filling = _Filling(template, sum(tensor.size for tensor in tensors.values()))
    for name, tensor in tensors.items():
        rule = next((rule for rule in rules if re.fullmatch(rule.pattern, name)), None)
        if rule is None:
            filling.problems.append(f"no rule for tensor {name} {tensor.shape}")
        elif rule.path is not None:
            filling.take(name, tensor, rule)
    problems = filling.problems + filling.gaps()
    if problems:
        lines = "\n  ".join(problems)
        raise ConfigError(
            f"{len(problems)} mismatches between its {len(tensors)} tensors and the network:\n"
            f"  {lines}\n"
            "Names are mapped in simjax/porting/maps; a shape mismatch means that the weights "
            "belong to another network than the one that the file describes."
        )
    return _unflatten(filling.arrays)


def export(names: Sequence[Name], weights: Any, depth: int = 0) -> dict[str, np.ndarray]:
    """Exports a nested dict as foreign tensors by name; inverse of `apply`.

    >>> names = [Name("fc.weight", "fc/kernel", LINEAR)]
    >>> export(names, {"fc": {"kernel": np.ones((2, 1))}})
    {'fc.weight': array([[1., 1.]])}

    Args:
      names: entries whose path is not in `weights` are skipped.
      depth: number of layers, the range of "{}" in a name.

    Returns:
      Tensors of the dtypes of `weights`.
    """
    tensors = {}
    for name in names:
        for path, leaf in _flatten(weights):
            if match := re.fullmatch(_pattern(name.path), path):
                for layer in range(depth) if "{}" in name.foreign else [None]:
                    foreign = name.foreign.format(layer, **match.groupdict())
                    tensors[foreign] = _foreign(name, np.asarray(leaf), layer)
    return tensors


def _foreign(name: Name, whole: np.ndarray, layer: int | None) -> np.ndarray:
    """The foreign tensor for one layer and part of our array."""
    part, parts = name.part
    value = whole if layer is None or name.copies else whole[layer]
    return np.ascontiguousarray(name.layout.to_foreign(np.split(value, parts, axis=-1)[part]))


class _Filling:
    """Arrays being filled from foreign tensors, and the mismatches.

    Memory is allocated only if the file has as many elements as the template needs.
    """

    def __init__(self, template: Any, numbers: int):
        leaves = _flatten(template)
        make = np.empty if sum(leaf.size for _, leaf in leaves) <= numbers else _without_memory
        self.arrays = {path: make(leaf.shape, leaf.dtype) for path, leaf in leaves}
        self.problems: list[str] = []
        self._slots: dict[tuple, int] = {}  # (path, layer, part) -> elements that arrived there

    def take(self, name: str, tensor: np.ndarray, rule: Rule) -> None:
        """Converts and stores one tensor by its rule, or records the mismatch."""
        match = re.fullmatch(rule.pattern, name)
        path = match.expand(rule.path)
        try:
            value = rule.convert(np.asarray(tensor, np.float32))
        except ValueError:  # wrong number of dimensions
            self.problems.append(f"{name} {tensor.shape} cannot be laid out as {path}")
            return
        if path not in self.arrays:
            self.problems.append(f"{name} maps to {path}, which this network does not have")
            return
        layer = match.groupdict().get("layer")
        layer = None if layer is None else int(layer)
        place = self._place(self.arrays[path], layer, rule.part)
        where = path if layer is None else f"{path}[{layer}]"
        slot = (path, layer, rule.part)
        if place is None:
            self.problems.append(f"{name} maps to {where}, which this network does not have")
        elif value.shape != place.shape:
            self.problems.append(
                f"{name} arrives at {where} as {value.shape}, expected {place.shape}"
            )
        elif slot not in self._slots:
            if place.flags.writeable:
                place[...] = value
            self._slots[slot] = value.size
        elif not rule.copies:
            self.problems.append(f"{name} maps to {where}, which is filled already")
        elif not np.array_equal(place, value.astype(place.dtype)):
            self.problems.append(f"{name} differs from the tensor that filled {where}")

    def gaps(self) -> list[str]:
        """Parameters that no tensor filled, or only in part."""
        arrived: Counter[str] = Counter()
        for (path, _, _), size in self._slots.items():
            arrived[path] += size
        return [
            f"nothing fills {path} {array.shape}"
            if not arrived[path]
            else f"{arrived[path]} of {array.size} elements fill {path} {array.shape}"
            for path, array in self.arrays.items()
            if path not in arrived or arrived[path] != array.size
        ]

    @staticmethod
    def _place(array: np.ndarray, layer: int | None, part: tuple[int, int]) -> np.ndarray | None:
        """View of a layer and part of the last axis, or None."""
        if layer is not None:
            if not array.ndim or layer >= len(array):
                return None
            array = array[layer]
        index, parts = part
        if parts == 1:
            return array[...]
        if not array.ndim or array.shape[-1] % parts:
            return None
        size = array.shape[-1] // parts
        return array[..., index * size : (index + 1) * size]


def _without_memory(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A read-only array of this shape that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


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
