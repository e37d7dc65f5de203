"""Generators: how a sample is made of noise by calls of a denoiser.

    xt_k = x_{k-1} + sigma_k eps_k,    x_k = D(xt_k; sigma_k),    x_0 = 0,  eps_1 = z

down the levels sigma_1 > ... > sigma_K. Whoever draws, trains, measures, exports or counts what
that costs asks the object that `generator_of` makes of a config.

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


# The noise of the next call, from z, this call's input, output and level, and new noise.
RENOISE = {"fresh": _fresh, "fixed": _fixed, "ddim": _ddim}


@dataclasses.dataclass(frozen=True)
class OneStep:
    """x0 = D(sigma_init z; sigma_init): one evaluation of the denoiser.

    Args:
      sigma_init: noise level, data units.

    Attributes:
      evaluations: of the network, for a sample.
      training_evaluations: for a sample that trains, on average.
      draws_noise: whether it takes noise beside z.
      name, kind, formula: how a sample is made, for a person.
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
        """Of its calls."""
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
        """Samples, data units.

        Args:
          z: N(0, I), (b, h, w, c).
          noise: not used.
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
        calls: None = None,
        noise_keys: None = None,
        dropout_keys: Array | None = None,
    ) -> Images:
        """Samples whose gradient trains the parameters; `Chain` has the other arguments."""
        return self.sample(denoise, params, z, cond, dropout_keys=dropout_keys)

    def describe(self) -> str:
        """For a person."""
        return f"one call at sigma {self.sigma_init}"

    def settings(self) -> dict[str, Any]:
        """Fields of config.Generator that make it again, in plain JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Chain:
    """K calls of the denoiser, each on the noised output of the one before.

    Trained as a mixture: of one step of training all samples are x_k of one k, and the gradient
    goes through call k alone. The fake score, which is never conditioned on k, learns the mixture
    of all k; score projection is linear in it, so SIM's theorem holds.

    Args:
      levels: of the calls, descending, data units.
      renoise: what eps_2, eps_3, ... are: "fresh" N(0, I), "fixed" z, or "ddim", the noise that
        the call before has found.
    """

    levels: tuple[float, ...]
    renoise: str = "fresh"

    @property
    def evaluations(self) -> int:
        """Of the network, for a sample."""
        return len(self.levels)

    @property
    def training_evaluations(self) -> float:
        """For a sample that trains, the mean over k."""
        return (len(self.levels) + 1) / 2

    @property
    def draws_noise(self) -> bool:
        """Whether it takes noise beside z."""
        return self.renoise == "fresh"

    @property
    def name(self) -> str:
        """How a sample is made, for a person."""
        return f"{len(self.levels)} calls"

    @property
    def kind(self) -> str:
        """The same as an adjective."""
        return f"{len(self.levels)}-step"

    @property
    def formula(self) -> str:
        """The same in symbols."""
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
          noise: new noise by call; needed where `draws_noise`.
          options: of the denoiser.
        """
        if self.draws_noise and noise is None:
            raise ValueError("Chain.sample: renoise = 'fresh' needs noise.")

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
        """x_k, k = calls, a scalar that may be traced; its gradient is that of call k alone.

        Args:
          noise_keys: one an example, of the noise that `sample` is given.
          dropout_keys: of call k; the calls before it have no dropout.
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
        """For a person."""
        levels = ", ".join(f"{sigma:.4g}" for sigma in self.levels)
        return f"{len(self.levels)} calls at sigma {levels}, {self.renoise} noise"

    def settings(self) -> dict[str, Any]:
        """Fields of config.Generator that make it again, in plain JSON."""
        return dataclasses.asdict(self)

    def _after(
        self,
        call: Callable[[Images, Array], Images],
        z: Images,
        noise: DrawNoise | None,
        calls: Array | int,
    ) -> tuple[Images, Images]:
        """x_k and eps_{k+1} after k calls, by a loop whose length may be traced."""
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
    """The generator that a config describes."""
    options = config.generator
    levels = c.generator_levels(options)
    if len(levels) == 1:
        return OneStep(sigma_init=levels[0])
    return Chain(levels, options.renoise)


def with_generator(config: c.Config, generator: Generator) -> c.Config:
    """The config whose generator makes samples as this one does."""
    calls = dataclasses.asdict(c.Generator())
    calls = {name: calls[name] for name in ("steps", "sigma_init", "shift", "levels", "renoise")}
    options = dataclasses.replace(config.generator, **calls | generator.settings())
    return dataclasses.replace(config, generator=options)


def with_calls(config: c.Config, calls: int) -> tuple[c.Config, str]:
    """The config with another number of calls, and what a person should know of that.

    The levels are those of the rule, from the same first one. The text is empty where the number
    is that of training.
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
        f"the generator was trained for {trained.describe()}; samples of "
        f"{generator_of(config).describe()} are of another law."
    )


def set_sigma_init(config: c.Config, sigma_init: float) -> None:
    """Changes the level of a generator's first call.

    Raises:
      ConfigError: its levels are given one by one.
    """
    if config.generator.levels:
        raise ConfigError(
            f"--sigma_init={sigma_init}: the generator has {generator_of(config).describe()}; "
            "leave --sigma_init out."
        )
    config.generator.sigma_init = sigma_init


def noise_given(noises: Array | None) -> DrawNoise | None:
    """The noise of each call after the first, from an array (b, calls - 1, h, w, c)."""
    return None if noises is None else lambda k: noises[:, k - 1]


def noise_of(keys: Array, shape: tuple[int, ...]) -> DrawNoise:
    """New noise for each call, of one key an example."""

    def draw(k: Array | int) -> Images:
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, k)
        return jax.vmap(lambda key: jax.random.normal(key, shape))(own)

    return draw
