"""T5 text encoders as pure functions, with parameters sharded over devices.

Loaded from a folder, they encode the prompts of a whole cache (commands/encode_prompts.py) or a few
prompts at once.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from simjax import config as c
from simjax.errors import ConfigError
from simjax.networks.t5 import T5Encoder
from simjax.porting import zoo
from simjax.porting.files import read_weights
from simjax.porting.maps import rules, t5
from simjax.runtime import checkpoint, sharding
from simjax.text.caption_cache import Embedded
from simjax.text.tokenizer import Tokenizer
from simjax.typing import Array, Caption, Params

Encode = Callable[..., Array]  # (params, tokens (b, l), mask (b, l)) -> (b, l, channels), bfloat16

# Dtype of parameters and matmuls; the residual stream is float32 (networks/t5.py).
DTYPE = jnp.bfloat16  # our choice, to save memory; so does PixArt-alpha's code
AT_A_TIME = 64  # largest batch of prompts of a Reader; our choice


def encoder(options: c.T5, dtype: jnp.dtype = DTYPE, unroll: bool = False) -> T5Encoder:
    """T5 encoder initialised with key 0; call it inside nnx.eval_shape for shapes."""
    sizes = vars(options)
    return T5Encoder(**sizes, unroll=unroll, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))


def encoding(
    options: c.T5, dtype: jnp.dtype = DTYPE, unroll: bool = False
) -> tuple[Encode, Params]:
    """Returns encode(params, tokens, mask, *, gather=None) and the shapes of params."""
    module = nnx.eval_shape(lambda: encoder(options, dtype, unroll))
    graphdef, params = nnx.split(module)

    def encode(params, tokens, mask, *, gather=None):
        features = nnx.merge(graphdef, params)(tokens, mask, gather=gather)
        return features.astype(jnp.bfloat16)

    return encode, nnx.to_pure_dict(params)


def sharded(encode: Encode, mesh: Mesh) -> Encode:
    """Jits `encode` for sharded parameters, all-gathered block by block."""
    gather = functools.partial(sharding.gathered_layer, mesh=mesh)

    def encode_sharded(params, tokens, mask):
        params = sharding.gathered_outside_stack(params, mesh)
        features = encode(params, tokens, mask, gather=gather)
        return sharding.split_batch(features, mesh)

    return jax.jit(encode_sharded)


class Encoder(NamedTuple):
    """A text encoder, with parameters sharded over the local devices.

    Attributes:
      encode: encode(params, tokens, mask), jitted.
      params: sharded parameters.
      sizes: hyperparameters of the network.
      digest: sha256 of sizes and parameters.
      mesh: local devices.
    """

    encode: Encode
    params: Params
    sizes: c.T5
    digest: str
    mesh: Mesh


def load_encoder(folder: str | os.PathLike) -> Encoder:
    """Loads a T5 encoder from a Hugging Face folder: config.json and weights.

    Raises:
      ConfigError: another network, or files are missing or damaged.
    """
    weights = read_weights.read(zoo.local(folder))
    if weights.config is None:
        raise ConfigError(f"{folder} has no config.json; expected the folder of a T5 encoder.")
    try:
        sizes = c.T5(**t5.describe(weights.config))
        encode, like = encoding(sizes)
        params = rules.apply(t5.RULES, weights.tensors, like)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from error
    devices = jax.local_devices()
    mesh = sharding.make_mesh(len(devices), devices)
    known = json.dumps([vars(sizes), checkpoint.params_sha256(params)], sort_keys=True)
    digest = hashlib.sha256(known.encode()).hexdigest()
    return Encoder(sharded(encode, mesh), sharding.place(params, mesh), sizes, digest, mesh)


def random_encoder(sizes: c.T5) -> Encoder:
    """T5 with random parameters (key 0), for small vocabularies and tests."""
    encode, like = encoding(sizes)
    params = nnx.to_pure_dict(nnx.state(encoder(sizes)))
    devices = jax.local_devices()
    mesh = sharding.make_mesh(len(devices), devices)
    digest = f"random parameters of {json.dumps(vars(sizes), sort_keys=True)}"
    return Encoder(sharded(encode, mesh), sharding.place(params, mesh), sizes, digest, mesh)


def require_fit(encoder: Encoder, tokenizer: Tokenizer) -> None:
    """Raises if token ids exceed the encoder's vocabulary.

    Raises:
      ConfigError: tokenizer and encoder are not of the same model.
    """
    if tokenizer.largest >= encoder.sizes.vocabulary:
        raise ConfigError(
            f"{tokenizer.path} has token ids up to {tokenizer.largest}, expected less than the "
            f"encoder's vocabulary size {encoder.sizes.vocabulary}; use the tokenizer that the "
            "encoder was trained with."
        )


def embedded(
    encoder: Encoder, tokenizer: Tokenizer, prompts: Sequence[str], *, length: int, batch: int
) -> Iterator[Embedded]:
    """Yields embeddings of prompts in batches, computing one batch ahead.

    Args:
      length: tokens per prompt; longer prompts are truncated.
      batch: batch size, rounded up to a multiple of the number of devices.
    """
    batch = sharding.rounded_up(batch, encoder.mesh)
    where = sharding.batch_split(encoder.mesh)
    begun = None
    for start in range(0, len(prompts), batch):
        tokens, mask, truncated = tokenizer.encode(prompts[start : start + batch], length)
        blank = ((0, batch - len(tokens)), (0, 0))
        inputs = (jax.device_put(np.pad(array, blank), where) for array in (tokens, mask))
        features = encoder.encode(encoder.params, *inputs)
        if begun is not None:
            yield _fetched(*begun)
        begun = (features, mask, truncated)
    if begun is not None:
        yield _fetched(*begun)


def _fetched(features: jax.Array, mask: np.ndarray, truncated: int) -> Embedded:
    embedding = np.asarray(features)[: len(mask)]
    return Embedded(np.where(mask[..., None], embedding, 0), mask, truncated)


class Reader(NamedTuple):
    """Encodes prompts, truncated to `length` tokens, into captions."""

    encoder: Encoder
    tokenizer: Tokenizer
    length: int

    def __call__(self, prompts: Sequence[str]) -> Caption:
        """Captions of prompts, equal to those of a cache."""
        batch = min(AT_A_TIME, len(prompts))
        return captions(self.encoder, self.tokenizer, prompts, length=self.length, batch=batch)

    def cut(self, prompts: Sequence[str]) -> int:
        """Number of prompts that are truncated."""
        return self.tokenizer.encode(prompts, self.length)[-1]


def open_reader(encoder: str, tokenizer: str, length: int) -> Reader:
    """A Reader from Hugging Face folders of encoder and tokenizer.

    Args:
      tokenizer: folder or file of the tokenizer; "" looks in the encoder's folder.

    Raises:
      ConfigError: encoder or tokenizer cannot be loaded, or they do not fit together.
    """
    words = Tokenizer(zoo.local(tokenizer or encoder))
    made = Reader(load_encoder(encoder), words, length)
    require_fit(made.encoder, words)
    return made


def captions(
    encoder: Encoder, tokenizer: Tokenizer, prompts: Sequence[str], *, length: int, batch: int
) -> Caption:
    """Captions of a few prompts, equal to those of a cache. NumPy.

    Args:
      length, batch: see `embedded`.
    """
    parts = list(embedded(encoder, tokenizer, prompts, length=length, batch=batch))
    embedding = np.concatenate([part.embedding for part in parts])
    mask = np.concatenate([part.mask for part in parts])
    return Caption(embedding, mask, np.zeros(len(mask), bool))
