"""A one-step generator as a program that jax.export wrote: it runs where simjax is not installed.

    x0 = D(sigma_init z; sigma_init, condition)

for any batch size, on CPUs, GPUs and TPUs. Parameters are arguments, so the program is small
whatever the network; LOADER reads them from a safetensors file.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from simjax import config as c
from simjax.models import build
from simjax.models.exported import WEIGHTS
from simjax.typing import Array, Caption, Condition, Images, Params

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, LOADER_NAME = "generator.stablehlo", "load_generator.py"
LOADER = f'''\
"""generate(z, *condition): see README.md. Needs jax, and flatbuffers, by which jax.export reads."""
import functools
import json
import pathlib

import jax
import numpy as np
from jax import export

folder = pathlib.Path(__file__).parent
data = np.fromfile(folder / "{WEIGHTS}", np.uint8)
start = 8 + int(data[:8].view("<u8")[0])  # of the tensors, behind a header in JSON
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
    """The program of (tensors by path, z, *condition); see `arguments` for the condition.

    Tensors are those of `weights`; parameters are read. Constants are in the program, as in every
    one of simjax: the compiler folds what only they and sigma_init decide.
    """
    denoise, params = build.denoiser(config, weights)
    parameters, sigma_init = flatten_dict(params, sep="/").keys(), config.generator.sigma_init

    def generate(tensors: dict[str, Array], z: Images, *condition: Array) -> Images:
        params = unflatten_dict({path: tensors[path] for path in parameters}, sep="/")
        batch = z.shape[0]
        cond = _condition(config, batch, condition)
        return denoise(params, sigma_init * z, jnp.full(batch, sigma_init), cond)

    like = flatten_dict(build.weights_like(config), sep="/")
    tensors = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in like.items()}
    exported = export.export(jax.jit(generate), platforms=PLATFORMS)(tensors, *_shapes(config))
    return bytes(exported.serialize())


def arguments(config: c.Config, cond: Condition) -> tuple[Array, ...]:
    """What the program takes for a condition: class numbers, of which -1 is none; or a caption.

    A caption's embedding and mask are those of caption_length tokens, or of 120 where the network
    does not say.
    """
    if isinstance(cond, Caption):
        return cond.embedding.astype(jnp.float32), cond.mask
    if not config.network.label_dim:
        return ()
    return (jnp.where(cond.any(1), cond.argmax(1), -1).astype(jnp.int32),)


def _condition(config: c.Config, batch: Any, given: Sequence[Array]) -> Condition:
    """The inverse of `arguments`; `batch` may be symbolic."""
    if isinstance(config.network, c.PixArt):
        return Caption(*given, jnp.zeros(batch, bool))
    if not config.network.label_dim:
        return jnp.zeros((batch, 0))
    return jax.nn.one_hot(given[0], config.network.label_dim)


def _shapes(config: c.Config) -> list[jax.ShapeDtypeStruct]:
    """Of z and the condition, whose first axis is any number."""
    (batch,) = export.symbolic_shape("b")
    network, shapes = config.network, [((batch, *build.image_shape(config)), jnp.float32)]
    if isinstance(network, c.PixArt):
        words = (batch, network.caption_length or build.CAPTION_LENGTH)
        shapes += [((*words, network.caption_channels), jnp.float32), (words, jnp.bool_)]
    elif network.label_dim:
        shapes += [((batch,), jnp.int32)]
    return [jax.ShapeDtypeStruct(*shape) for shape in shapes]
