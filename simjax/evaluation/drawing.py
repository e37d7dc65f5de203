"""Draws samples for evaluation; every sampler gets the same noise and conditions."""

import math
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from simjax.errors import ConfigError
from simjax.runtime import processes, sharding
from simjax.runtime.monitor import to_uint8
from simjax.typing import Array, Condition, Images, Key, Params


class Drawing:
    """Compiles each sampler once and yields its samples in batches.

    Args:
      key: PRNG key; the noise of sample i depends only on (key, i).
      cond: conditions, (n, ...).
      shape: (h, w, c) of one sample.
      batch: largest global batch, rounded up to a multiple of the number of devices.
      mesh: devices over which each batch is split.
      decode: maps latents to images (an autoencoder); included in the timing.
      count: number of samples; cycles through the conditions. None: one sample per condition.
    """

    def __init__(
        self,
        key: Key,
        cond: Condition,
        shape: tuple[int, int, int],
        batch: int,
        mesh: Mesh,
        decode: Callable[[np.ndarray], np.ndarray] = lambda samples: samples,
        count: int | None = None,
    ):
        self._decode = decode
        self._cond = jax.tree.map(np.asarray, cond)
        self._conditions = len(jax.tree.leaves(self._cond)[0])
        self._count = self._conditions if count is None else count
        self._mesh = mesh
        self._shape = shape
        self.batch = sharding.rounded_up(min(batch, self._count), self._mesh)
        self.seconds = 0.0  # wall time of the last sampler, without compilation
        self._programs: dict[tuple, Callable] = {}  # by sampler and dtypes of its parameters

        key_data = np.asarray(jax.random.key_data(key))  # NumPy, so on no device

        def noise(index: Array) -> tuple[Images, Array]:
            key = jax.random.wrap_key_data(key_data)
            keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(index)
            return jax.vmap(lambda k: jax.random.normal(k, shape))(keys[:, 0]), keys[:, 1]

        self._noise = jax.jit(noise, out_shardings=sharding.batch_split(self._mesh))

    def draw(
        self, sampler: Callable[[Params, Array, Condition, Array], Images], params: Params
    ) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
        """Yields uint8 batches of sampler(params, z, cond, keys), on every process."""
        return map(to_uint8, self.images(sampler, params))

    def images(
        self, sampler: Callable[[Params, Array, Condition, Array], Images], params: Params
    ) -> Iterator[Float[np.ndarray, "b h w c"]]:
        """Yields batches of samples in data units; see `draw`.

        Raises:
          Preempted: SIGTERM was received.
          ConfigError: samples are not finite.
        """
        count = self._count
        index = np.arange(math.ceil(count / self.batch) * self.batch) % count  # one compiled shape
        parts = index.reshape(-1, self.batch)
        key = (sampler, *(leaf.dtype for leaf in jax.tree.leaves(params)))
        if key not in self._programs:
            lower = getattr(sampler, "lower", None) or jax.jit(sampler).lower
            self._programs[key] = lower(params, *self._inputs(parts[0])).compile()
            self._decode(np.zeros((1, *self._shape), np.float32))  # compiles the decoder too
        program = self._programs[key]
        self.seconds = 0.0
        for number, part in enumerate(parts):
            processes.stop_if_requested("while samples were drawn")
            begun = time.monotonic()
            samples = sharding.to_host(program(params, *self._inputs(part)))
            images = self._decode(samples[: count - number * self.batch])
            self.seconds += time.monotonic() - begun
            if not np.isfinite(images).all():
                raise ConfigError(
                    f"{np.sum(~np.isfinite(images).all((1, 2, 3)))} of {len(images)} samples are "
                    "not finite: the network that drew them has diverged."
                )
            yield images

    def _inputs(self, part: np.ndarray) -> tuple[Images, Condition, Array]:
        z, noise_keys = self._noise(part)
        where = sharding.batch_split(self._mesh)
        rows = part % self._conditions
        cond = jax.tree.map(lambda leaf: sharding.placed(leaf[rows], where), self._cond)
        return z, cond, noise_keys
