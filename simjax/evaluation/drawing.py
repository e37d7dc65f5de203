"""Draws samples to be measured: one sampler after another, from the same noise and conditions."""

import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from simjax import processes, sharding
from simjax.config import ConfigError
from simjax.monitor import to_uint8
from simjax.typing import Array, Condition, Images, Key, Params


class Drawing:
    """Compiles each sampler once, and gives its samples in batches.

    Args:
      key: noise of sample i depends on (key, i) alone.
      cond: of every sample.
      shape: of one image.
      batch: samples at a time, rounded up to the devices, over which each batch is split.
      mesh: those devices.
    """

    def __init__(
        self, key: Key, cond: Condition, shape: tuple[int, int, int], batch: int, mesh: Mesh
    ):
        self._cond = jax.tree.map(np.asarray, cond)
        self._count = len(jax.tree.leaves(self._cond)[0])
        self._mesh = mesh
        self.batch = -(-batch // self._mesh.size) * self._mesh.size
        self.seconds = 0.0  # that the last sampler took, without compilation
        self._programs: dict[Callable, Callable] = {}

        key_data = np.asarray(jax.random.key_data(key))  # of no device

        def noise(index: Array) -> tuple[Images, Array]:
            key = jax.random.wrap_key_data(key_data)
            keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(index)
            return jax.vmap(lambda k: jax.random.normal(k, shape))(keys[:, 0]), keys[:, 1]

        self._noise = jax.jit(noise, out_shardings=sharding.batch_split(self._mesh))

    def draw(
        self, sampler: Callable[[Params, Array, Condition, Array], Images], params: Params
    ) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
        """Batches of samples of (params, z, cond, keys), rounded to uint8; on every process.

        Raises:
          Preempted: SIGTERM has come.
          ConfigError: samples that are not finite.
        """
        count = self._count
        index = np.arange(-(-count // self.batch) * self.batch) % count  # one compiled shape
        parts = index.reshape(-1, self.batch)
        if sampler not in self._programs:
            lowered = jax.jit(sampler).lower(params, *self._inputs(parts[0]))
            self._programs[sampler] = lowered.compile()
        program = self._programs[sampler]
        self.seconds = 0.0
        for number, part in enumerate(parts):
            processes.stop_if_asked("while samples were drawn")
            begun = time.monotonic()
            images = sharding.to_host(program(params, *self._inputs(part)))
            self.seconds += time.monotonic() - begun
            images = images[: count - number * self.batch]
            if not np.isfinite(images).all():
                raise ConfigError(
                    f"{np.sum(~np.isfinite(images).all((1, 2, 3)))} of {len(images)} samples are "
                    "not finite: the network that made them has diverged."
                )
            yield to_uint8(images)

    def _inputs(self, part: np.ndarray) -> tuple[Images, Condition, Array]:
        z, noise_keys = self._noise(part)
        where = sharding.batch_split(self._mesh)
        cond = jax.tree.map(lambda leaf: sharding.placed(leaf[part], where), self._cond)
        return z, cond, noise_keys
