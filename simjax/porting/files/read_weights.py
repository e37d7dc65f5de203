"""Reads weights from a file, an index with shards, or a folder.

Folders have the layout of Hugging Face's libraries: config.json and the weights, or an index
{"weight_map": {tensor: file}} of the files ("shards") that hold them. Called by the ports of
transformers: DiT (.pt), PixArt-alpha (.pth), SIM's student, and folders of T5 and of VAEs.
"""

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simjax.errors import ConfigError
from simjax.porting.files import read_safetensors, read_torch
from simjax.porting.files.foreign_file import DOWNLOAD_AGAIN, json_object, reading, shown
from simjax.porting.files.placeholders import described

# Keys of state dicts in training checkpoints; the first row, EMA weights, is preferred. DiT writes
# ema and model, PixArt-alpha the other two, SIM's released student ema.
KEYS = (("ema", "state_dict_ema"), ("model", "state_dict"))
# Name prefixes of torch's DistributedDataParallel and torch.compile, possibly nested.
WRAPPERS = re.compile(r"(?:module\.|_orig_mod\.)*")
LARGEST_JSON = 2**21  # bytes; our choice: T5-XXL's index, among the longest, has some 20 KB
MOST_SHOWN = 8  # entries of a dict or folder in a message; our choice
SHARD = re.compile(r"\w[\w.-]{0,199}", re.ASCII)  # a plain file name; may be a symbolic link
# File names of diffusers and transformers; a variant is e.g. ".fp16". Shards do not match.
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?P<variant>\.\w+)?"
    r"\.(?P<kind>safetensors|bin)(?:\.index(?P<variant_of_index>\.\w+)?\.json)?"
)


class Weights(NamedTuple):
    """Tensors, their config, and their provenance.

    Attributes:
      tensors: by name, without WRAPPERS; read-only views of the mapped files.
      config: the folder's config.json; None if it has none or no folder was given.
      files: every file that was read, for provenance.
      key: the entry of KEYS that held the tensors, "" for none.
    """

    tensors: dict[str, np.ndarray]
    config: dict[str, Any] | None
    files: list[Path]
    key: str


def read(path: str | os.PathLike) -> Weights:
    """Reads a file, an index (*.json) with its shards, or a folder.

    A file's format is detected from its content. If a folder has several weight files, those
    without a variant (fp16, ema) are preferred, then safetensors.

    Raises:
      ConfigError: naming every file and tensor that is invalid, missing, or duplicated.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    weights = _index(path) if path.suffix == ".json" else _file(path)
    return weights._replace(tensors=_without_wrappers(weights.tensors, path))


def unwrapped(value: Any, path: str | os.PathLike) -> tuple[dict[str, np.ndarray], str]:
    """The state dict in a loaded checkpoint, and its key or "".

    Other entries (optimizer, epoch, arguments) are ignored.

    >>> checkpoint = {"model": {"w": np.zeros(2)}, "ema": {"w": np.ones(2)}, "epoch": 3}
    >>> unwrapped(checkpoint, "dit.pt")
    ({'w': array([1., 1.])}, 'ema')

    Raises:
      ConfigError: "PATH: contents; expected ...", if there is no state dict or no unique one.
    """
    key = "" if _are_tensors(value) else _key(value, path)
    tensors = value[key] if key else value
    if not _are_tensors(tensors):
        raise ConfigError(
            f"{path}: its {key} holds {_held(tensors)}; expected tensors by name and nothing else. "
            "Save only the state dict"
        )
    return tensors, key


def _without_wrappers(
    tensors: dict[str, np.ndarray], path: str | os.PathLike
) -> dict[str, np.ndarray]:
    """The tensors by name, without the prefixes of DDP and torch.compile.

    Raises:
      ConfigError: the names have different prefixes.
    """
    prefixes = {name: WRAPPERS.match(name)[0] for name in tensors}
    examples = {prefix: name for name, prefix in reversed(prefixes.items())}
    if len(examples) > 1:
        firsts = " but ".join(map(shown, [*examples.values()][:2]))
        raise ConfigError(
            f"{path}: names with different prefixes ({firsts}); expected those of "
            "DistributedDataParallel (module.) and torch.compile (_orig_mod.) on every tensor "
            "or on none. Save the state dict of the network inside the wrapper"
        )
    return {name.removeprefix(prefix): tensors[name] for name, prefix in prefixes.items()}


def _key(value: Any, path: str | os.PathLike) -> str:
    """The key of the state dict, by the priority of KEYS."""
    dicts: set[str] = set()
    if isinstance(value, dict) and not any(isinstance(one, np.ndarray) for one in value.values()):
        dicts = {key for key, member in value.items() if isinstance(member, dict) and member}
    found = next(filter(None, (dicts.intersection(row) for row in KEYS)), ())
    if len(found) != 1:
        known = ", ".join(key for row in KEYS for key in row)
        raise ConfigError(
            f"{path}: holds {_held(value)}; expected tensors by name and nothing else, or a dict "
            f"of them under one of {known} and no other tensor. Save only the state dict"
        )
    return next(iter(found))


def _are_tensors(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(name, str) for name in value)
        and all(isinstance(tensor, np.ndarray) for tensor in value.values())
    )


def _held(value: Any) -> str:
    """Describes an unpickled value; of a dict, the entries besides named tensors."""
    if not isinstance(value, dict):
        return described(value)
    others = {
        key: member
        for key, member in value.items()
        if not isinstance(key, str) or not isinstance(member, np.ndarray)
    }
    names = [
        f"{shown(key) if isinstance(key, str) else described(key)} ({described(member)})"
        for key, member in islice(others.items(), MOST_SHOWN)
    ]
    more = ["..."] if len(others) > MOST_SHOWN else []
    return ", ".join([f"a dict of {len(value) - len(others)} tensors", *names, *more])


def _file(path: Path) -> Weights:
    if _is_safetensors(path):
        return Weights(read_safetensors.read(path), None, [path], "")
    tensors, key = unwrapped(read_torch.read(path), path)
    return Weights(tensors, None, [path], key)


def _is_safetensors(path: Path) -> bool:
    """Whether byte 8 is a brace, as in no torch.save file."""
    with reading(path) as (data, _):
        return data[8:9] == b"{"


def _folder(folder: Path) -> Weights:
    problems: list[str] = []
    config = None
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}; give a folder to read") from error
    with _noting(problems):
        config = read_json(folder / "config.json") if "config.json" in names else None
    with _noting(problems):
        weights = read(folder / _chosen(folder, names))
    if problems:
        raise ConfigError("\n".join(problems))
    files = weights.files if config is None else [folder / "config.json", *weights.files]
    return weights._replace(config=config, files=files)


def _chosen(folder: Path, names: list[str]) -> str:
    """The file name of the weights or of their index."""
    ranked = defaultdict(list)
    for name in names:
        if match := WEIGHTS.fullmatch(name):
            is_variant = bool(match["variant"] or match["variant_of_index"])
            ranked[is_variant, match["kind"] != "safetensors"].append(name)
    if not ranked:
        held = ", ".join(map(shown, names[:MOST_SHOWN])) or "nothing"
        raise ConfigError(
            f"{folder}: holds {held}{', ...' if len(names) > MOST_SHOWN else ''}; expected "
            "model.safetensors, diffusion_pytorch_model.safetensors, pytorch_model.bin or an "
            "index of shards. For a pipeline, give one of its folders, e.g. transformer"
        )
    best = ranked[min(ranked)]
    if len(best) > 1:
        raise ConfigError(f"{folder}: weights in {', '.join(best)}: give the path of one of them")
    return best[0]


def _index(path: Path) -> Weights:
    homes = _weight_map(path)
    shards: dict[str, dict[str, np.ndarray]] = {}
    problems: list[str] = []
    for home in dict.fromkeys(homes.values()):
        with _noting(problems):
            shards[home] = _shard(path.parent, home)
    problems += _misfits(homes, shards)
    if problems:
        lines = "\n  ".join(problems)
        raise ConfigError(
            f"{path}: {len(problems)} problems with its shards:\n  {lines}\n"
            "Download the index and all its shards again, from the same source"
        )
    tensors = {name: shards[home][name] for name, home in homes.items()}
    return Weights(tensors, None, [path, *(path.parent / home for home in shards)], "")


def _weight_map(path: Path) -> dict[str, str]:
    """The shard of each tensor."""
    homes = read_json(path).get("weight_map")
    if not isinstance(homes, dict) or not homes:
        raise ConfigError(f"{path}: its weight_map is {described(homes)}, expected tensor: file")
    for name, home in homes.items():
        if not isinstance(home, str):
            raise ConfigError(
                f"{path}: maps {shown(name)} to {described(home)}, expected a file name; "
                + DOWNLOAD_AGAIN
            )
    return homes


def _shard(folder: Path, name: str) -> dict[str, np.ndarray]:
    if not SHARD.fullmatch(name):
        raise ConfigError(
            f"shard {shown(name)}: not a plain file name next to the index; do not use this file"
        )
    path = folder / name
    tensors = read_safetensors.read(path) if _is_safetensors(path) else read_torch.read(path)
    if not _are_tensors(tensors):
        raise ConfigError(
            f"{path}: holds {_held(tensors)}; expected tensors by name; save only those"
        )
    return tensors


def _misfits(homes: Mapping[str, str], shards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Disagreements between the index and the readable shards, one line each."""
    found = defaultdict(list)
    for shard, tensors in shards.items():
        for name in tensors:
            found[name].append(shard)
    lacking = [name for name in homes if name not in found and homes[name] in shards]
    problems = [
        f"{shown(name)} is not in {homes[name]}, its shard in the index" for name in lacking
    ]
    for name, where in found.items():
        if name not in homes:
            problems.append(f"{shown(name)} is in {', '.join(where)}, but not in the index")
        elif where != [homes[name]]:
            expected = f"expected only in {shown(homes[name])}"
            problems.append(f"{shown(name)} is in {', '.join(where)}, {expected}")
    return problems


def read_json(path: Path) -> dict[str, Any]:
    """Reads a small JSON object from an untrusted folder.

    Raises:
      ConfigError: "PATH: problem", also for a file that is too long.
    """
    with reading(path) as (data, budget):
        if len(data) > LARGEST_JSON:
            raise ConfigError(
                f"{len(data)} bytes of JSON, expected at most {LARGEST_JSON}; {DOWNLOAD_AGAIN}"
            )
        return json_object(data, "it", budget)


@contextlib.contextmanager
def _noting(problems: list[str]) -> Iterator[None]:
    """Appends the block's ConfigError to a list that is reported at once."""
    try:
        yield
    except ConfigError as error:
        problems.append(str(error))
