"""Name maps with an exact cover: every foreign tensor has a rule, every parameter is filled once.

A map (porting/maps/*) is a list of Rules, or of Names where weights go out under them too.
Nothing here reads files.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from simjax.errors import ConfigError

Convert = Callable[[np.ndarray], np.ndarray]


def oihw_to_hwio(kernel: np.ndarray) -> np.ndarray:
    """PyTorch convolution kernel to NHWC's."""
    return kernel.transpose(2, 3, 1, 0)


def hwio_to_oihw(kernel: np.ndarray) -> np.ndarray:
    """The inverse of `oihw_to_hwio`."""
    return kernel.transpose(3, 2, 0, 1)


def transposed(kernel: np.ndarray) -> np.ndarray:
    """PyTorch linear (out, in) to (in, out)."""
    return kernel.T


def unchanged(array: np.ndarray) -> np.ndarray:
    """The layouts agree."""
    return array


class Layout(NamedTuple):
    """How a foreign array becomes ours, and the way back."""

    to_ours: Convert
    to_foreign: Convert


AS_IT_IS = Layout(unchanged, unchanged)
LINEAR = Layout(transposed, transposed)
CONVOLUTION = Layout(oihw_to_hwio, hwio_to_oihw)


class Rule(NamedTuple):
    """Foreign names matching `pattern` (whole) go to `path`, converted; path None drops them.

    Args:
      pattern: a group named `layer` is an index along the first axis of what lies at `path`.
      part: (k, n): the k-th of n equal parts of the last axis is filled.
      copies: several tensors may arrive at one place, if they are equal.
    """

    pattern: str
    path: str | None
    convert: Convert = unchanged
    part: tuple[int, int] = (0, 1)
    copies: bool = False


class Name(NamedTuple):
    """One foreign name and one path of ours, both ways; "{}" in the name counts layers.

    "{word}", in the name and in the path, is the same letters, digits and underscores in both. With
    `copies` every layer has the same tensor, which is one of ours.
    """

    foreign: str
    path: str
    layout: Layout = AS_IT_IS
    part: tuple[int, int] = (0, 1)
    copies: bool = False

    def rule(self) -> Rule:
        """The way in."""
        number = r"\d{1,4}" if self.copies else r"(?P<layer>\d{1,4})"
        pattern = _pattern(self.foreign).replace(r"\{\}", number)
        path = re.sub(r"\{(\w+)\}", r"\\g<\1>", self.path)
        return Rule(pattern, path, self.layout.to_ours, self.part, self.copies)


def _pattern(text: str) -> str:
    """What matches a name or a path, with a group for each "{word}"."""
    return re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\w+)", re.escape(text))


def apply(
    rules: Sequence[Rule], tensors: Mapping[str, np.ndarray], template: Any
) -> dict[str, Any]:
    """Fills `template`, a nested dict of arrays or shapes, from foreign tensors.

    Tensor by tensor: what is needed beside the result is one of them in float32.

    Returns:
      A nested dict of NumPy arrays with the template's structure, shapes and dtypes.

    Raises:
      ConfigError: naming every tensor without a rule, every parameter left unfilled or filled
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
            f"{len(problems)} misfits between its {len(tensors)} tensors and the network:\n"
            f"  {lines}\n"
            "Names are mapped in simjax/porting/maps; a shape that differs means that the weights "
            "are those of another network than the file says."
        )
    return _unflatten(filling.arrays)


def export(names: Sequence[Name], weights: Any, depth: int = 0) -> dict[str, np.ndarray]:
    """The way out: foreign tensors by name, of the dtypes of `weights` (a nested dict).

    Args:
      names: those whose paths `weights` does not have are left out.
      depth: layers, which "{}" in a name counts.
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
    """What one foreign tensor holds of what lies at its path."""
    part, parts = name.part
    value = whole if layer is None or name.copies else whole[layer]
    return np.ascontiguousarray(name.layout.to_foreign(np.split(value, parts, axis=-1)[part]))


class _Filling:
    """Arrays on their way from foreign tensors, and what did not fit.

    Memory is only taken where as many numbers have come as the template needs.
    """

    def __init__(self, template: Any, numbers: int):
        leaves = _flatten(template)
        make = np.empty if sum(leaf.size for _, leaf in leaves) <= numbers else _without_memory
        self.arrays = {path: make(leaf.shape, leaf.dtype) for path, leaf in leaves}
        self.problems: list[str] = []
        self._slots: dict[tuple, int] = {}  # (path, layer, part) -> elements that arrived there

    def take(self, name: str, tensor: np.ndarray, rule: Rule) -> None:
        """Puts one tensor where its rule says, or notes why it cannot."""
        match = re.fullmatch(rule.pattern, name)
        path = match.expand(rule.path)
        try:
            value = rule.convert(np.asarray(tensor, np.float32))
        except ValueError:  # not even of the right number of dimensions
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
        """What no tensor filled, or not wholly."""
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
        """The slot that a layer and a part of the last axis stand for; None where there is none."""
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
    """An array that only has a shape, read-only."""
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
