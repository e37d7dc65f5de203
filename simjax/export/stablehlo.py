"""A generator as a jax.export program that runs without simjax.

Any batch size, on CPUs, GPUs and TPUs. Parameters are arguments, so the program is small for any
network; LOADER reads them from a safetensors file.
"""

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from simjax import config as c
from simjax.models import build
from simjax.models.exported import WEIGHTS
from simjax.models.generator import generator_of, noise_given
from simjax.typing import Array, Images, Params

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, LOADER_NAME = "generator.stablehlo", "load_generator.py"
LOADER = f'''\
"""generate(z, [noise,] *condition): see README.md. Needs jax and flatbuffers."""
import functools
import json
import pathlib

import jax
import numpy as np
from jax import export

folder = pathlib.Path(__file__).parent
data = np.fromfile(folder / "{WEIGHTS}", np.uint8)
start = 8 + int(data[:8].view("<u8")[0])  # of the tensors, after the JSON header
header = json.loads(data[8:start].tobytes())
weights = {{}}
for name in header.keys() - {{"__metadata__"}}:
    begin, end = header[name]["data_offsets"]
    flat = data[start + begin : start + end].view("<f4")
    weights[name] = jax.numpy.asarray(flat.reshape(header[name]["shape"]))
program = jax.jit(export.deserialize((folder / "{PROGRAM}").read_bytes()).call)
generate = functools.partial(program, weights)
'''


def serialized(config: c.Config, weights: Params) -> bytes:
    """The serialized program of (tensors by path, z, *condition) -> x0.

    A multi-step generator with fresh noise takes it after z, shape (b, NFE - 1, h, w, c). The
    tensors are those of `weights`, of which the program uses the parameters; constants are part of
    the program, so that the compiler can fold them. The condition is that of the network's
    `condition.arguments`.
    """
    denoise, params = build.denoiser(config, weights)
    parameters, generator = flatten_dict(params, sep="/").keys(), generator_of(config)

    def generate(tensors: dict[str, Array], z: Images, *others: Array) -> Images:
        params = unflatten_dict({path: tensors[path] for path in parameters}, sep="/")
        (noises, *condition) = others if generator.draws_noise else (None, *others)
        cond = config.network.condition.of_arguments(z.shape[0], condition)
        return generator.sample(denoise, params, z, cond, noise_given(noises))

    like = flatten_dict(build.weights_like(config), sep="/")
    tensors = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in like.items()}
    exported = export.export(jax.jit(generate), platforms=PLATFORMS)(tensors, *_shapes(config))
    return bytes(exported.serialize())


def _shapes(config: c.Config) -> list[jax.ShapeDtypeStruct]:
    """Shapes of z, fresh noise and condition, with a symbolic batch axis."""
    (batch,) = export.symbolic_shape("b")
    shape, generator = build.image_shape(config), generator_of(config)
    inputs = [jax.ShapeDtypeStruct((batch, *shape), jnp.float32)]
    if generator.draws_noise:
        later = (batch, generator.evaluations - 1, *shape)
        inputs.append(jax.ShapeDtypeStruct(later, jnp.float32))
    return [*inputs, *config.network.condition.argument_shapes(batch)]
