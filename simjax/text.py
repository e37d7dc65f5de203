"""The text encoder of a run: a T5 encoder as a pure function, on parameters split over devices."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from simjax import config as c
from simjax import sharding
from simjax.networks.t5 import T5Encoder
from simjax.typing import Array, Params

Encode = Callable[..., Array]  # (params, tokens (b, l), mask (b, l)) -> (b, l, channels), bfloat16

# Of parameters and products; the sums between blocks are float32 (networks/t5.py).
DTYPE = jnp.bfloat16  # our choice, for memory; PixArt-alpha's own encodes so too


def encoder(options: c.T5, dtype: jnp.dtype = DTYPE, unroll: bool = False) -> T5Encoder:
    """T5 with parameters from key 0; cheap inside nnx.eval_shape."""
    sizes = vars(options)
    return T5Encoder(**sizes, unroll=unroll, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))


def encoding(
    options: c.T5, dtype: jnp.dtype = DTYPE, unroll: bool = False
) -> tuple[Encode, Params]:
    """encode(params, tokens, mask, *, gather=None), and the shapes of its parameters."""
    module = nnx.eval_shape(lambda: encoder(options, dtype, unroll))
    graphdef, params = nnx.split(module)

    def encode(params, tokens, mask, *, gather=None):
        features = nnx.merge(graphdef, params)(tokens, mask, gather=gather)
        return features.astype(jnp.bfloat16)

    return encode, nnx.to_pure_dict(params)


def sharded(encode: Encode, mesh: Mesh) -> Encode:
    """The encoder of parameters that are split over the mesh, gathered block by block; jitted."""
    gather = functools.partial(sharding.gathered_layer, mesh=mesh)

    def encode_sharded(params, tokens, mask):
        params = sharding.gathered_outside_stack(params, mesh)
        features = encode(params, tokens, mask, gather=gather)
        return sharding.split_batch(features, mesh)

    return jax.jit(encode_sharded)
