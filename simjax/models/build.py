"""Builds a config's denoiser D: parameters, shapes, RNG keys and mesh."""

import functools
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from simjax import config as c
from simjax.diffusion import guidance
from simjax.diffusion.families import FAMILIES
from simjax.networks.denoiser import Constants, Denoiser, as_denoise, constants_of, with_constants
from simjax.networks.layers import REMAT
from simjax.networks.pixart import PIXELS
from simjax.runtime import sharding
from simjax.runtime.cpu import for_cpus
from simjax.typing import Caption, Denoise, Key, Params

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
NETWORK_CHOICES = {
    "compute_dtype": DTYPES,
    "remat": REMAT,
    "teacher.precondition": FAMILIES,
}


def network_choices(config: c.Config) -> dict[str, Collection[str]]:
    """Config fields that select a network's build options, with their valid values."""
    choices = {} if config.network is None else config.network.choices
    return NETWORK_CHOICES | {f"network.{name}": known for name, known in choices.items()}


def network(
    options: c.Network,
    precondition: str,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    remat: str = "none",
    unroll: bool = False,
) -> nnx.Module:
    """The raw network F inside D, freshly initialised.

    Args:
      precondition: a family of diffusion/families.py; decides whether F also predicts variances.
      unroll: trace every transformer block instead of scanning over them.
    """
    of_family = FAMILIES[precondition].learned_variance
    twice = of_family if options.learn_sigma is None else options.learn_sigma
    outputs = options.image_channels * (2 if twice else 1)
    return options.build(out_channels=outputs, unroll=unroll, remat=remat, dtype=dtype, rngs=rngs)


class OneKey:
    """A stand-in for nnx.Rngs where only shapes matter.

    Tracing the counter of nnx.Rngs takes time quadratic in the number of layers, which is most of
    the time of computing a network's shapes.
    """

    def params(self) -> Key:
        """Returns the same key for every layer."""
        return jax.random.key(0)


def module(config: c.Config, rngs: nnx.Rngs | OneKey | None = None) -> Denoiser:
    """D as an nnx module, initialised from config.seed unless `rngs` is given."""
    teacher = config.teacher
    coefficients = FAMILIES[teacher.precondition].precondition(teacher.sigma_data)
    dtype = DTYPES[config.compute_dtype]
    rngs = rngs or nnx.Rngs(config.seed)
    inside = network(
        config.network, teacher.precondition, dtype, rngs, config.remat, not config.scan_blocks
    )
    return Denoiser(inside, coefficients)


def _shell(config: c.Config) -> Denoiser:
    """D with abstract parameters (shapes and dtypes only)."""
    return nnx.eval_shape(lambda: module(config, OneKey()))


def weights_like(config: c.Config) -> Params:
    """Shapes and dtypes of D's parameters and fixed constants, as nested dicts."""
    return nnx.to_pure_dict(nnx.state(_shell(config)))


def denoiser(config: c.Config, weights: Params) -> tuple[Denoise, Params]:
    """D(params, xt, sigma, cond) as a pure function, and its parameters.

    Args:
      weights: parameters and constants, with the tree structure of `weights_like`.
    """
    shell = _shell(config)
    nnx.update(shell, weights)
    return as_denoise(shell)


def fresh(config: c.Config) -> tuple[Denoise, Params, Constants]:
    """The denoiser, parameters initialised from config.seed, and its fixed constants."""
    drawn = module(config)
    denoise, params = as_denoise(drawn)
    return denoise, params, constants_of(nnx.to_pure_dict(nnx.state(drawn)), params)


def blank(config: c.Config) -> tuple[Denoise, Params]:
    """The denoiser with all-zero parameters, for tracing and compilation.

    The zeros are never written to, so the operating system allocates no memory for them.
    """
    like = weights_like(config)
    return denoiser(config, jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), like))


def weights_of(params: Params, constants: Constants) -> Params:
    """Parameters on the host, with the constants, as stored in files."""
    return with_constants(sharding.to_host(params), constants)


def count(params: Params) -> int:
    """Number of scalars in a parameter tree.

    >>> count({"kernel": np.zeros((3, 4)), "bias": np.zeros(4)})
    16
    """
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def image_shape(config: c.Config) -> tuple[int, int, int]:
    """(height, width, channels) of one sample: pixels, or VAE latents."""
    return config.network.shape


def pixel_shape(config: c.Config) -> tuple[int, int, int]:
    """(height, width, channels) of a decoded image."""
    if not config.autoencoder:
        return image_shape(config)
    return (PIXELS * config.network.resolution,) * 2 + (3,)


def mesh(config: c.Config, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh of all devices; config.fsdp bounds its fsdp axis."""
    return sharding.make_mesh(config.fsdp, devices)


PURPOSES = ("pretraining", "distillation", "pictures", "evaluation")


def key(config: c.Config, purpose: str) -> Key:
    """RNG key of one purpose, folded from the run's root key.

    >>> key(c.Config(seed=0), "distillation") == key(c.Config(seed=0), "evaluation")
    Array(False, dtype=bool)
    """
    return jax.random.fold_in(jax.random.key(config.seed), PURPOSES.index(purpose))


def key_on(config: c.Config, purpose: str, mesh: Mesh) -> Key:
    """The same key, replicated over a mesh."""
    make = functools.partial(key, config, purpose)
    return jax.jit(make, out_shardings=sharding.replicated(mesh))()


def on_devices(denoise: Denoise, mesh: Mesh, config: c.Config) -> Denoise:
    """The denoiser for sharded parameters, which are gathered before use.

    Transformer stacks gather one block at a time. On CPUs, faster implementations of some layers
    are used (runtime/cpu.py).
    """

    def whole(params, *args, **options):
        return denoise(sharding.gathered(params, mesh), *args, **options)

    def by_block(params, *args, **options):
        params = sharding.gathered_outside_stack(params, mesh)
        gather = functools.partial(sharding.gathered_layer, mesh=mesh)
        return denoise(params, *args, gather=gather, **options)

    return for_cpus(sharding.on_cpus(mesh))(by_block if config.network.is_stack else whole)


def guided(config: c.Config, denoise: Denoise, scale: float) -> Denoise:
    """The denoiser with classifier-free guidance of this scale."""
    return guidance.guided(denoise, scale, config.network.condition.null, guided_channels(config))


def guided_channels(config: c.Config) -> int | None:
    """Number of leading channels that guidance applies to; None for all."""
    channels = config.teacher.guided_channels
    if channels is None:
        channels = config.network.guided_channels
    return channels if channels and channels < config.network.image_channels else None


def any_captions(config: c.Config, shape: tuple[int, ...]) -> Caption | None:
    """Random caption embeddings for a text-to-image network; None for other networks."""
    condition = config.network.condition
    return condition.draw(key(config, "evaluation"), shape) if condition.reads_prompts else None
