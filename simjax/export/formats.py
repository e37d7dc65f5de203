"""The formats that generators are exported in: written, read back, and compared with the original.

safetensors is simjax's own, edm and diffusers are state dictionaries for PyTorch, stablehlo is a
program. models/exported.py opens the first.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export
from safetensors.numpy import save_file

from simjax import config as c
from simjax.errors import ConfigError
from simjax.export import scheduler, stablehlo
from simjax.models import build, port, samplers
from simjax.models.exported import SETTINGS, WEIGHTS, described, read, settings
from simjax.models.generator import generator_of, noise_of
from simjax.porting import identify
from simjax.porting.files import read_safetensors
from simjax.porting.maps import dit, edm, pixart, rules
from simjax.runtime import storage
from simjax.typing import Array, Condition, Denoise, Images, Params

EDM_WEIGHTS, EDM_SETTINGS = "edm_state_dict.safetensors", "edm.json"
TRANSFORMER = "transformer"  # its folder in a pipeline of diffusers
TRANSFORMER_WEIGHTS = f"{TRANSFORMER}/diffusion_pytorch_model.safetensors"
TRANSFORMER_SETTINGS = f"{TRANSFORMER}/config.json"
NO_CAPTION = "network/no_caption"  # which diffusers' folders lack, and one call does not read
SAMPLES = 3  # that are compared; our choice
# Largest difference of images over the largest value. In bfloat16 (8 bits) a single rounding inside
# that falls the other way shows.
TOLERANCES = {"float32": 1e-6, "bfloat16": 1e-2}


class Generator(NamedTuple):
    """What is exported: the generator of a config, with its weights.

    Attributes:
      weights: parameters and constants, nested dicts of NumPy arrays.
      expected: what the live generator makes of `inputs`.
    """

    config: c.Config
    weights: Params
    expected: Images


class Format(NamedTuple):
    """Refuses a config, writes files (their names come back), and compares what they hold.

    `compare` returns what it found, and raises a ConfigError where that is not the original.
    """

    require: Callable[[c.Config], None]
    write: Callable[[Generator, Path], list[str]]
    compare: Callable[[Generator, Path], str]


class Transformer(NamedTuple):
    """A class of diffusers.

    Attributes:
      names: of its tensors.
      settings: its config.json.
      read_back: the network as its folder describes it.
    """

    class_name: str
    names: Sequence[rules.Name]
    settings: Callable[[Any], dict[str, Any]]
    read_back: Callable[[Any], Any] = lambda network: network


DIFFUSERS = {
    c.DiT: Transformer("DiTTransformer2DModel", dit.DIFFUSERS, dit.folder_config),
    c.PixArt: Transformer(
        "PixArtTransformer2DModel",
        pixart.DIFFUSERS,
        pixart.folder_config,
        pixart.without_no_caption,
    ),
}


def sampler(
    config: c.Config, denoise: Denoise, params: Params
) -> Callable[[Images, Condition, Array], Images]:
    """(z, condition, keys) -> images, as everywhere in simjax."""
    sample = samplers.generator_sampler(denoise, config, build.mesh(config))
    return functools.partial(sample, params)


def inputs(config: c.Config) -> tuple[Images, Condition, Array]:
    """Noise, conditions and keys of the samples that are compared."""
    key = build.key(config, "evaluation")
    z = jax.random.normal(key, (SAMPLES, *build.image_shape(config)))
    return z, config.network.condition.examples(key, SAMPLES), jax.random.split(key, SAMPLES)


def _any(config: c.Config) -> None:
    """Every network has it."""


def _write_own(generator: Generator, folder: Path) -> list[str]:
    save(folder / WEIGHTS, flatten_dict(generator.weights, sep="/"))
    write(folder / SETTINGS, to_json(settings(generator.config)))
    return [WEIGHTS, SETTINGS]


def _compare_own(generator: Generator, folder: Path) -> str:
    config, weights = read(folder)
    same = _compare_weights(generator.weights, weights, folder / WEIGHTS)
    images = sampler(config, *build.denoiser(config, weights))(*inputs(config))
    return f"{same}; {_compare_images(generator, images, folder / WEIGHTS)}"


def _write_program(generator: Generator, folder: Path) -> list[str]:
    program = stablehlo.serialized(generator.config, generator.weights)
    write(folder / stablehlo.PROGRAM, program)
    write(folder / stablehlo.LOADER_NAME, stablehlo.LOADER.encode())
    return [stablehlo.PROGRAM, stablehlo.LOADER_NAME]


def _compare_program(generator: Generator, folder: Path) -> str:
    file, config = folder / stablehlo.PROGRAM, generator.config
    program = jax.jit(export.deserialize(file.read_bytes()).call)
    (z, cond, keys), chain = inputs(config), generator_of(config)
    given = [z]
    if chain.draws_noise:
        noise = noise_of(keys, z.shape[1:])
        given.append(np.stack([noise(k) for k in range(1, chain.evaluations)], axis=1))
    tensors = dict(read_safetensors.read(folder / WEIGHTS))
    images = program(tensors, *given, *config.network.condition.arguments(cond))
    return _compare_images(generator, images, file)


def _require_edm(config: c.Config) -> None:
    edm.constructor(described(config))


def _write_edm(generator: Generator, folder: Path) -> list[str]:
    description = described(generator.config)
    name, values = edm.constructor(description)
    save(folder / EDM_WEIGHTS, edm.state_dict(description, generator.weights))
    write(folder / EDM_SETTINGS, to_json({"class_name": name, "arguments": values}))
    return [EDM_WEIGHTS, EDM_SETTINGS]


def _compare_edm(generator: Generator, folder: Path) -> str:
    found = json.loads((folder / EDM_SETTINGS).read_text())
    network = edm.describe(found["class_name"], found["arguments"]).network
    _require_same_network(generator.config.network, network, folder / EDM_SETTINGS)
    tensors = read_safetensors.read(folder / EDM_WEIGHTS)
    weights = rules.apply(edm.rules(network), tensors, generator.weights)
    return _compare_weights(generator.weights, weights, folder / EDM_WEIGHTS)


def _require_diffusers(config: c.Config) -> None:
    network, precondition = config.network, config.teacher.precondition
    if type(network) not in DIFFUSERS or precondition != identify.DDPM:
        known = ", ".join(kind.__name__ for kind in DIFFUSERS)
        raise ConfigError(
            f"{type(network).__name__} with precondition {precondition!r} is no transformer of "
            f"diffusers, which has {known} with {identify.DDPM}."
        )
    DIFFUSERS[type(network)].settings(network)
    chain = generator_of(config)
    if chain.evaluations > 1 and not chain.draws_noise:
        raise ConfigError(
            f"a generator of {chain.describe()}: diffusers has a scheduler for chains of fresh "
            "noise alone; use --format=safetensors or stablehlo."
        )
    scheduler.settings(chain.levels)


def _write_diffusers(generator: Generator, folder: Path) -> list[str]:
    network = generator.config.network
    kind = DIFFUSERS[type(network)]
    (folder / TRANSFORMER).mkdir(exist_ok=True)
    save(folder / TRANSFORMER_WEIGHTS, rules.export(kind.names, generator.weights, network.depth))
    values = {"_class_name": kind.class_name} | kind.settings(network)
    write(folder / TRANSFORMER_SETTINGS, to_json(values))
    files = [TRANSFORMER_WEIGHTS, TRANSFORMER_SETTINGS]
    levels = generator_of(generator.config).levels
    if len(levels) == 1:
        return files
    (folder / scheduler.FILE).parent.mkdir(exist_ok=True)
    write(folder / scheduler.FILE, to_json(scheduler.settings(levels)))
    return [*files, scheduler.FILE]


def _compare_diffusers(generator: Generator, folder: Path) -> str:
    found = port.port(str(folder / TRANSFORMER), say=lambda text: None)
    network = DIFFUSERS[type(generator.config.network)].read_back(generator.config.network)
    _require_same_network(network, found.description.network, folder / TRANSFORMER_SETTINGS)
    flat = flatten_dict(generator.weights, sep="/")
    flat.pop(NO_CAPTION, None)
    expected = unflatten_dict(flat, sep="/")
    return _compare_weights(expected, found.weights, folder / TRANSFORMER_WEIGHTS)


FORMATS = {
    "safetensors": Format(_any, _write_own, _compare_own),
    "edm": Format(_require_edm, _write_edm, _compare_edm),
    "diffusers": Format(_require_diffusers, _write_diffusers, _compare_diffusers),
    "stablehlo": Format(_any, _write_program, _compare_program),
}


def save(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Tensors in the safetensors format, in float32; the file is either absent or whole."""
    wide = {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}
    with storage.whole(file) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        save_file(wide, partial)
        partial.chmod(mode)  # safetensors would leave it to its owner alone


def write(file: Path, content: bytes) -> None:
    """A file that is either absent or whole."""
    with storage.whole(file) as partial:
        partial.write_bytes(content)


def to_json(value: Any) -> bytes:
    """For people to read too."""
    return f"{json.dumps(value, indent=2)}\n".encode()


def _require_same_network(expected: c.Network, found: c.Network, file: Path) -> None:
    differing = c.differences(c.describe(expected), c.describe(found))
    if differing:
        raise _refusal(file, f"its network is another (original -> file): {'; '.join(differing)}")


def _compare_weights(expected: Params, found: Params, file: Path) -> str:
    expected, found = flatten_dict(expected, sep="/"), flatten_dict(found, sep="/")
    wrong = [
        path
        for path in expected.keys() | found.keys()
        if path not in expected
        or path not in found
        or not np.array_equal(np.asarray(expected[path], np.float32), found[path])
    ]
    if wrong:
        raise _refusal(file, f"{len(wrong)} of {len(expected)} tensors differ, as {min(wrong)}")
    return f"{len(expected)} tensors equal"


def _compare_images(generator: Generator, images: Images, file: Path) -> str:
    expected, images = np.asarray(generator.expected), np.asarray(images)
    tolerance = TOLERANCES[generator.config.compute_dtype]
    difference = np.abs(images - expected).max() / np.abs(expected).max()
    if not difference <= tolerance:  # nor NaN
        raise _refusal(file, f"its images differ by {difference:.1e}, allowed {tolerance:.0e}")
    return f"{len(images)} images differ by {difference:.1e}"


def _refusal(file: Path, problem: str) -> ConfigError:
    return ConfigError(
        f"{file}, read back, is not the network that was exported: {problem}. Do not use it; check "
        "the disk, and export again."
    )
