"""Export formats: write a generator, read it back, compare.

safetensors is simjax's own format (opened by models/exported.py); edm and diffusers are state dicts
for PyTorch; stablehlo is a serialized program.
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
TRANSFORMER = "transformer"  # subfolder of a diffusers pipeline
TRANSFORMER_WEIGHTS = f"{TRANSFORMER}/diffusion_pytorch_model.safetensors"
TRANSFORMER_SETTINGS = f"{TRANSFORMER}/config.json"
NO_CAPTION = "network/no_caption"  # unused without guidance; not in diffusers' folders
SAMPLES = 3  # compared after reading back; our choice
# max|a - b| / max|b| of images. In bfloat16 (8 bits of significand) one rounding difference inside
# the network is visible.
TOLERANCES = {"float32": 1e-6, "bfloat16": 1e-2}


class Generator(NamedTuple):
    """The generator to export.

    Attributes:
      weights: parameters and constants, nested dicts of NumPy arrays.
      expected: its samples for `inputs(config)`, (SAMPLES, h, w, c), data units.
    """

    config: c.Config
    weights: Params
    expected: Images


class Format(NamedTuple):
    """An export format.

    Attributes:
      require: raises a ConfigError for a config that the format does not support.
      write: writes the files into a folder and returns their names.
      compare: reads them back and returns a summary of the comparison; raises a ConfigError if
        they differ from the original.
    """

    require: Callable[[c.Config], None]
    write: Callable[[Generator, Path], list[str]]
    compare: Callable[[Generator, Path], str]


class Transformer(NamedTuple):
    """A transformer class of diffusers.

    Attributes:
      names: map of tensor names.
      settings: network -> its config.json.
      read_back: network -> the network expected from porting the folder.
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
    """The generator's sampler, (z, condition, keys) -> images."""
    sample = samplers.generator_sampler(denoise, config, build.mesh(config))
    return functools.partial(sample, params)


def inputs(config: c.Config) -> tuple[Images, Condition, Array]:
    """Noise z, conditions and keys of the compared samples.

    >>> config = c.complete(c.Config(), c.SongUNet(label_dim=10), "edm", sigma_data=0.5)
    >>> z, labels, keys = inputs(config)
    >>> z.shape, labels.shape, keys.shape
    ((3, 32, 32, 3), (3, 10), (3,))
    """
    key = build.key(config, "evaluation")
    z = jax.random.normal(key, (SAMPLES, *build.image_shape(config)))
    return z, config.network.condition.examples(key, SAMPLES), jax.random.split(key, SAMPLES)


def _any(config: c.Config) -> None:
    """Supported for every network."""


def _write_own(generator: Generator, folder: Path) -> list[str]:
    save(folder / WEIGHTS, flatten_dict(generator.weights, sep="/"))
    write(folder / SETTINGS, to_json(settings(generator.config)))
    return [WEIGHTS, SETTINGS]


def _compare_own(generator: Generator, folder: Path) -> str:
    config, weights = read(folder)
    same = _compare_weights(generator.weights, weights, folder / WEIGHTS)
    sample = sampler(config, *build.denoiser(config, weights))
    images = sample(*inputs(generator.config))  # of its seed, which an export does not keep
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
            f"--format=diffusers does not support {type(network).__name__} with precondition "
            f"{precondition!r}; supported: {known} with {identify.DDPM}."
        )
    DIFFUSERS[type(network)].settings(network)
    chain = generator_of(config)
    if chain.evaluations > 1 and not chain.draws_noise:
        raise ConfigError(
            f"--format=diffusers cannot sample {chain.describe()}: its LCMScheduler supports "
            "fresh noise only; use --format=safetensors or stablehlo."
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
    """Writes tensors to a safetensors file in float32, atomically.

    >>> save(Path("w.safetensors"), {"w": np.ones((2, 3), np.float16)})
    >>> tensors = dict(read_safetensors.read(Path("w.safetensors")))
    >>> tensors["w"].shape, tensors["w"].dtype
    ((2, 3), dtype('float32'))
    """
    wide = {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}
    with storage.whole(file) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        save_file(wide, partial)
        partial.chmod(mode)  # safetensors makes the file readable by its owner only


def write(file: Path, content: bytes) -> None:
    """Writes a file atomically."""
    with storage.whole(file) as partial:
        partial.write_bytes(content)


def to_json(value: Any) -> bytes:
    """Indented JSON with a final newline, UTF-8.

    >>> print(to_json({"sigma_init": 2.5}).decode(), end="")
    {
      "sigma_init": 2.5
    }
    """
    return f"{json.dumps(value, indent=2)}\n".encode()


def _require_same_network(expected: c.Network, found: c.Network, file: Path) -> None:
    differing = c.differences(c.describe(expected), c.describe(found))
    if differing:
        raise _refusal(file, f"its network differs (original -> file): {'; '.join(differing)}")


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
        raise _refusal(file, f"{len(wrong)} of {len(expected)} tensors differ, e.g. {min(wrong)}")
    return f"{len(expected)} tensors equal"


def _compare_images(generator: Generator, images: Images, file: Path) -> str:
    expected, images = np.asarray(generator.expected), np.asarray(images)
    tolerance = TOLERANCES[generator.config.compute_dtype]
    difference = np.abs(images - expected).max() / np.abs(expected).max()
    if not difference <= tolerance:  # also catches NaN
        raise _refusal(file, f"its images differ by {difference:.1e}, tolerance {tolerance:.0e}")
    return f"{len(images)} images differ by {difference:.1e}"


def _refusal(file: Path, problem: str) -> ConfigError:
    return ConfigError(
        f"{file}, read back, differs from the exported network: {problem}. Do not use it; check "
        "the disk, and export again."
    )
