"""Draws samples to be measured: one sampler after another, from the same noise and conditions."""

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
    """Compiles each sampler once, and gives its samples in batches.

    Args:
      key: noise of sample i depends on (key, i) alone.
      cond: of the samples.
      shape: of one sample.
      batch: samples at a time at most, rounded up to the devices, over which each batch is split.
      mesh: those devices.
      decode: of samples that are latents; its time counts too.
      count: of samples, which have the conditions in turn; by default one for each condition.
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
        self.seconds = 0.0  # that the last sampler took, without compilation
        self._programs: dict[tuple, Callable] = {}  # by sampler and its parameters' dtypes

        key_data = np.asarray(jax.random.key_data(key))  # of no device

        def noise(index: Array) -> tuple[Images, Array]:
            key = jax.random.wrap_key_data(key_data)
            keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(index)
            return jax.vmap(lambda k: jax.random.normal(k, shape))(keys[:, 0]), keys[:, 1]

        self._noise = jax.jit(noise, out_shardings=sharding.batch_split(self._mesh))

    def draw(
        self, sampler: Callable[[Params, Array, Condition, Array], Images], params: Params
    ) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
        """Batches of samples of (params, z, cond, keys), rounded to uint8; on every process."""
        return map(to_uint8, self.images(sampler, params))

    def images(
        self, sampler: Callable[[Params, Array, Condition, Array], Images], params: Params
    ) -> Iterator[Float[np.ndarray, "b h w c"]]:
        """Batches of samples in data units; see `draw`.

        Raises:
          Preempted: SIGTERM has come.
          ConfigError: samples that are not finite.
        """
        count = self._count
        index = np.arange(math.ceil(count / self.batch) * self.batch) % count  # one compiled shape
        parts = index.reshape(-1, self.batch)
        key = (sampler, *(leaf.dtype for leaf in jax.tree.leaves(params)))
        if key not in self._programs:
            lower = getattr(sampler, "lower", None) or jax.jit(sampler).lower
            self._programs[key] = lower(params, *self._inputs(parts[0])).compile()
            self._decode(np.zeros((1, *self._shape), np.float32))  # compiles it, too
        program = self._programs[key]
        self.seconds = 0.0
        for number, part in enumerate(parts):
            processes.stop_if_asked("while samples were drawn")
            begun = time.monotonic()
            samples = sharding.to_host(program(params, *self._inputs(part)))
            images = self._decode(samples[: count - number * self.batch])
            self.seconds += time.monotonic() - begun
            if not np.isfinite(images).all():
                raise ConfigError(
                    f"{np.sum(~np.isfinite(images).all((1, 2, 3)))} of {len(images)} samples are "
                    "not finite: the network that made them has diverged."
                )
            yield images

    def _inputs(self, part: np.ndarray) -> tuple[Images, Condition, Array]:
        z, noise_keys = self._noise(part)
        where = sharding.batch_split(self._mesh)
        rows = part % self._conditions
        cond = jax.tree.map(lambda leaf: sharding.placed(leaf[rows], where), self._cond)
        return z, cond, noise_keys
