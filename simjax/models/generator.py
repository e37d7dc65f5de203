"""Generators: how a sample is made of noise by calls of a denoiser.

Whoever draws, trains, measures, exports or counts what that costs asks the object that
`generator_of` makes of a config.
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp

from simjax import config as c
from simjax.typing import Array, Condition, Denoise, Images, Params


@dataclasses.dataclass(frozen=True)
class OneStep:
    """x0 = D(sigma_init z; sigma_init): one evaluation of the denoiser.

    Args:
      sigma_init: noise level, data units.

    Attributes:
      evaluations: of the network, for a sample.
      calls, formula: of a sample, for a person.
    """

    sigma_init: float
    evaluations: ClassVar[int] = 1
    calls: ClassVar[str] = "One call"
    formula: ClassVar[str] = "x0 = D(sigma_init z; sigma_init, condition)"

    def sample(
        self, denoise: Denoise, params: Params, z: Images, cond: Condition, **options: Any
    ) -> Images:
        """Samples, data units.

        Args:
          z: N(0, I), (b, h, w, c).
          options: of the denoiser.
        """
        sigma = jnp.full(z.shape[0], self.sigma_init, z.dtype)
        return denoise(params, self.sigma_init * z, sigma, cond, **options)

    def train_sample(
        self,
        denoise: Denoise,
        params: Params,
        z: Images,
        cond: Condition,
        *,
        dropout_keys: Array | None = None,
    ) -> Images:
        """Samples whose gradient trains the parameters."""
        return self.sample(denoise, params, z, cond, dropout_keys=dropout_keys)

    def describe(self) -> str:
        """For a person."""
        return f"one call at sigma {self.sigma_init}"

    def settings(self) -> dict[str, Any]:
        """Fields of config.Generator that make it again, in plain JSON."""
        return dataclasses.asdict(self)


Generator = OneStep


def generator_of(config: c.Config) -> Generator:
    """The generator that a config describes."""
    return OneStep(sigma_init=config.generator.sigma_init)
