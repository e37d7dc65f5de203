"""Generators: one-step and K-step sampling with a denoiser.

    xt_k = x_{k-1} + sigma_k eps_k,    x_k = D(xt_k; sigma_k),    x_0 = 0,  eps_1 = z

with noise levels sigma_1 > ... > sigma_K, so NFE = K. Sampling, training, evaluation, export and
FLOP counts all use the object that `generator_of` returns for a config.

References: SIM, arXiv:2410.16794 (K = 1); K steps trained as one mixture: arXiv:2505.12674;
SiD-DiT, arXiv:2509.25127.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from simjax import config as c
from simjax.errors import ConfigError
from simjax.typing import Array, Condition, Denoise, Images, Params

DrawNoise = Callable[[Array | int], Images]  # k, from 1 -> eps_{k+1}, N(0, I) like z


def _fresh(z: Images, xt: Images, x: Images, sigma: Array, noise: Images) -> Images:
    return noise


def _fixed(z: Images, xt: Images, x: Images, sigma: Array, noise: Images) -> Images:
    return z


def _ddim(z: Images, xt: Images, x: Images, sigma: Array, noise: Images) -> Images:
    return (xt - x) / sigma


# Noise of the next call, from z, this call's input xt, output x and level, and fresh noise.
RENOISE = {"fresh": _fresh, "fixed": _fixed, "ddim": _ddim}


@dataclasses.dataclass(frozen=True)
class OneStep:
    """One-step generator: x0 = D(sigma_init z; sigma_init), NFE 1.

    Args:
      sigma_init: noise level, data units.

    Attributes:
      evaluations: NFE, network forwards per sample.
      training_evaluations: mean number of forwards per training sample.
      draws_noise: whether sampling needs noise besides z.
      name, kind, formula: human-readable descriptions.

    >>> gaussian = lambda params, xt, sigma, cond: xt / (1 + sigma[:, None, None, None] ** 2)
    >>> OneStep(sigma_init=2.0).sample(gaussian, {}, jnp.ones((1, 1, 1, 1)), None).item()
    0.4...
    """

    sigma_init: float
    evaluations: ClassVar[int] = 1
    training_evaluations: ClassVar[float] = 1
    draws_noise: ClassVar[bool] = False
    name: ClassVar[str] = "one call"
    kind: ClassVar[str] = "one-step"
    formula: ClassVar[str] = "x0 = D(sigma_init z; sigma_init, condition)"

    @property
    def levels(self) -> tuple[float, ...]:
        """Noise levels of its calls, data units."""
        return (self.sigma_init,)

    def sample(
        self,
        denoise: Denoise,
        params: Params,
        z: Images,
        cond: Condition,
        noise: DrawNoise | None = None,
        **options: Any,
    ) -> Images:
        """Samples x0, data units.

        Args:
          z: N(0, I), (b, h, w, c).
          noise: unused.
          options: passed to the denoiser.
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
        calls: None = None,
        noise_keys: None = None,
        dropout_keys: Array | None = None,
    ) -> Images:
        """Differentiable samples for training; `calls` and `noise_keys` are for `Chain`."""
        return self.sample(denoise, params, z, cond, dropout_keys=dropout_keys)

    def describe(self) -> str:
        """Human-readable summary."""
        return f"one call at sigma {self.sigma_init}"

    def settings(self) -> dict[str, Any]:
        """Fields of config.Generator that reproduce it, as plain JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Chain:
    """K-step generator: each denoiser call gets the previous output, renoised.

    Trained as a mixture: each training step draws one k for the whole batch, its samples are x_k,
    and the gradient flows through call k only. The fake score, which is never conditioned on k,
    learns the mixture over all k; score projection is linear in the mixture, so SIM's theorem
    holds.

    Args:
      levels: noise level of each call, descending, data units.
      renoise: eps_2, eps_3, ...: "fresh" N(0, I), "fixed" z, or "ddim", the noise that the
        previous call predicted.

    >>> Chain((2.5, 0.5)).describe()
    '2 calls at sigma 2.5, 0.5, fresh noise'
    """

    levels: tuple[float, ...]
    renoise: str = "fresh"

    @property
    def evaluations(self) -> int:
        """NFE: network forwards per sample."""
        return len(self.levels)

    @property
    def training_evaluations(self) -> float:
        """Mean number of forwards per training sample, over k."""
        return (len(self.levels) + 1) / 2

    @property
    def draws_noise(self) -> bool:
        """Whether sampling needs noise besides z."""
        return self.renoise == "fresh"

    @property
    def name(self) -> str:
        """Number of calls, as shown in reports."""
        return f"{len(self.levels)} calls"

    @property
    def kind(self) -> str:
        """The same as an adjective, e.g. "4-step"."""
        return f"{len(self.levels)}-step"

    @property
    def formula(self) -> str:
        """The sampling recursion as a formula."""
        eps = {
            "fresh": "eps_k ~ N(0, I)",
            "fixed": "eps_k = z",
            "ddim": "eps_k = (xt_{k-1} - x_{k-1}) / sigma_{k-1}",
        }
        return (
            "xt_k = x_{k-1} + sigma_k eps_k, x_k = D(xt_k; sigma_k, condition), "
            f"x_0 = 0, eps_1 = z, {eps[self.renoise]}"
        )

    def sample(
        self,
        denoise: Denoise,
        params: Params,
        z: Images,
        cond: Condition,
        noise: DrawNoise | None = None,
        **options: Any,
    ) -> Images:
        """Samples x_K, data units.

        Args:
          z: N(0, I), (b, h, w, c).
          noise: returns the fresh noise of each call; required if `draws_noise`.
          options: passed to the denoiser.
        """
        if self.draws_noise and noise is None:
            raise ValueError("Chain.sample: renoise = 'fresh' needs the argument noise.")

        def call(xt: Images, sigma: Array) -> Images:
            return denoise(params, xt, jnp.full(xt.shape[0], sigma, xt.dtype), cond, **options)

        x, _ = self._after(call, z, noise, len(self.levels))
        return x

    def train_sample(
        self,
        denoise: Denoise,
        params: Params,
        z: Images,
        cond: Condition,
        *,
        calls: Array,
        noise_keys: Array,
        dropout_keys: Array | None = None,
    ) -> Images:
        """Samples x_k, with the gradient flowing through call k only.

        Args:
          calls: k, a scalar that may be traced.
          noise_keys: one key per example, for the fresh noise.
          dropout_keys: dropout of call k; earlier calls have no dropout.
        """
        frozen = jax.lax.stop_gradient(params)

        def call(xt: Images, sigma: Array) -> Images:
            return denoise(frozen, xt, jnp.full(xt.shape[0], sigma, xt.dtype), cond)

        noise = noise_of(noise_keys, z.shape[1:])
        x, eps = self._after(call, z, noise, calls - 1)
        sigma = jnp.asarray(self.levels, z.dtype)[calls - 1]
        xt, sigmas = x + sigma * eps, jnp.full(x.shape[0], sigma, x.dtype)
        return denoise(params, xt, sigmas, cond, dropout_keys=dropout_keys)

    def describe(self) -> str:
        """Human-readable summary."""
        levels = ", ".join(f"{sigma:.4g}" for sigma in self.levels)
        return f"{len(self.levels)} calls at sigma {levels}, {self.renoise} noise"

    def settings(self) -> dict[str, Any]:
        """Fields of config.Generator that reproduce it, as plain JSON."""
        return dataclasses.asdict(self)

    def _after(
        self,
        call: Callable[[Images, Array], Images],
        z: Images,
        noise: DrawNoise | None,
        calls: Array | int,
    ) -> tuple[Images, Images]:
        """x_k and eps_{k+1} after k = `calls` calls, which may be traced."""
        levels = jnp.asarray(self.levels, z.dtype)

        def one(k: Array, carry: tuple[Images, Images]) -> tuple[Images, Images]:
            x, eps = carry
            xt = x + levels[k] * eps
            x = call(xt, levels[k])
            new = noise(k + 1) if self.draws_noise else eps
            return x, RENOISE[self.renoise](z, xt, x, levels[k], new)

        return jax.lax.fori_loop(0, calls, one, (jnp.zeros_like(z), z))


Generator = OneStep | Chain


def generator_of(config: c.Config) -> Generator:
    """The generator that a config describes.

    >>> generator_of(c.Config(generator=c.Generator(steps=2))).describe()
    '2 calls at sigma 2.5, 0.5556, fresh noise'
    """
    options = config.generator
    levels = c.generator_levels(options)
    if len(levels) == 1:
        return OneStep(sigma_init=levels[0])
    return Chain(levels, options.renoise)


def with_generator(config: c.Config, generator: Generator) -> c.Config:
    """A copy of the config with this generator's calls and levels."""
    calls = dataclasses.asdict(c.Generator())
    calls = {name: calls[name] for name in ("steps", "sigma_init", "shift", "levels", "renoise")}
    options = dataclasses.replace(config.generator, **calls | generator.settings())
    return dataclasses.replace(config, generator=options)


def with_calls(config: c.Config, calls: int) -> tuple[c.Config, str]:
    """The config with another number of calls, and a warning to print.

    The new levels are `generator_levels` from the same first level. The warning is empty if the
    generator was trained with this number of calls.
    """
    trained = generator_of(config)
    if calls == trained.evaluations:
        return config, ""
    rule = {"sigma_init": trained.levels[0], "shift": 1.0, "levels": ()}
    if not config.generator.levels:
        rule = {"levels": ()}
    options = dataclasses.replace(config.generator, steps=calls, **rule)
    config = dataclasses.replace(config, generator=options)
    return config, (
        f"the generator was trained for {trained.describe()}; samples from "
        f"{generator_of(config).describe()} follow a different distribution."
    )


def set_sigma_init(config: c.Config, sigma_init: float) -> None:
    """Sets the noise level of the generator's first call, in place.

    Raises:
      ConfigError: the config lists all levels explicitly.
    """
    if config.generator.levels:
        raise ConfigError(
            f"--sigma_init={sigma_init}: the generator has explicit levels, "
            f"{generator_of(config).describe()}; leave --sigma_init out."
        )
    config.generator.sigma_init = sigma_init


def noise_given(noises: Array | None) -> DrawNoise | None:
    """Noise of each call after the first, from an array.

    Args:
      noises: (b, calls - 1, h, w, c); None for no noise.
    """
    return None if noises is None else lambda k: noises[:, k - 1]


def noise_of(keys: Array, shape: tuple[int, ...]) -> DrawNoise:
    """Fresh noise for each call, from one key per example."""

    def draw(k: Array | int) -> Images:
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, k)
        return jax.vmap(lambda key: jax.random.normal(key, shape))(own)

    return draw
