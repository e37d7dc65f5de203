"""A config's network: D with its parameters, shapes and keys, in the forms of a mesh's devices."""

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
    """Fields that say how a network is built, and the names that they may hold."""
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
    """F of a preconditioning family, freshly initialised; `unroll` is for stacks of blocks."""
    of_family = FAMILIES[precondition].learned_variance
    twice = of_family if options.learn_sigma is None else options.learn_sigma
    outputs = options.image_channels * (2 if twice else 1)
    return options.build(out_channels=outputs, unroll=unroll, remat=remat, dtype=dtype, rngs=rngs)


class OneKey:
    """A stand-in for nnx.Rngs where only shapes matter.

    Traced, the count of nnx.Rngs takes time quadratic in the layers: most of a network's shapes.
    """

    def params(self) -> Key:
        """The same key for every layer."""
        return jax.random.key(0)


def module(config: c.Config, rngs: nnx.Rngs | OneKey | None = None) -> Denoiser:
    """D with parameters drawn from config.seed, unless `rngs` is given."""
    teacher = config.teacher
    coefficients = FAMILIES[teacher.precondition].precondition(teacher.sigma_data)
    dtype = DTYPES[config.compute_dtype]
    rngs = rngs or nnx.Rngs(config.seed)
    inside = network(
        config.network, teacher.precondition, dtype, rngs, config.remat, not config.scan_blocks
    )
    return Denoiser(inside, coefficients)


def _shell(config: c.Config) -> Denoiser:
    """D with shapes in place of values."""
    return nnx.eval_shape(lambda: module(config, OneKey()))


def weights_like(config: c.Config) -> Params:
    """Shapes of everything in D that has a value: its parameters and its fixed constants."""
    return nnx.to_pure_dict(nnx.state(_shell(config)))


def denoiser(config: c.Config, weights: Params) -> tuple[Denoise, Params]:
    """D(params, xt, sigma, cond) and its parameters; `weights` is a tree like weights_like's."""
    shell = _shell(config)
    nnx.update(shell, weights)
    return as_denoise(shell)


def fresh(config: c.Config) -> tuple[Denoise, Params, Constants]:
    """The denoiser, parameters drawn from config.seed, and the network's fixed constants."""
    drawn = module(config)
    denoise, params = as_denoise(drawn)
    return denoise, params, constants_of(nnx.to_pure_dict(nnx.state(drawn)), params)


def blank(config: c.Config) -> tuple[Denoise, Params]:
    """The denoiser, and its parameters as zeros that nothing writes: they take no memory."""
    like = weights_like(config)
    return denoiser(config, jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), like))


def weights_of(params: Params, constants: Constants) -> Params:
    """Parameters from devices, with the constants, on the host: what files hold of a network."""
    return with_constants(sharding.to_host(params), constants)


def count(params: Params) -> int:
    """How many numbers a tree of parameters holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def image_shape(config: c.Config) -> tuple[int, int, int]:
    """(height, width, channels) of one sample of the network: an image, or its latents."""
    return config.network.shape


def pixel_shape(config: c.Config) -> tuple[int, int, int]:
    """(height, width, channels) of an image."""
    if not config.autoencoder:
        return image_shape(config)
    return (PIXELS * config.network.resolution,) * 2 + (3,)


def mesh(config: c.Config, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices, in the shape that the config asks for."""
    return sharding.make_mesh(config.fsdp, devices)


PURPOSES = ("pretraining", "distillation", "pictures", "evaluation")


def key(config: c.Config, purpose: str) -> Key:
    """One root key a run, one branch a purpose."""
    return jax.random.fold_in(jax.random.key(config.seed), PURPOSES.index(purpose))


def key_on(config: c.Config, purpose: str, mesh: Mesh) -> Key:
    """The same key on every device of a mesh."""
    make = functools.partial(key, config, purpose)
    return jax.jit(make, out_shardings=sharding.replicated(mesh))()


def on_devices(denoise: Denoise, mesh: Mesh, config: c.Config) -> Denoise:
    """The denoiser in the forms of the mesh's devices, of parameters that are split over them.

    A stack's parameters are gathered block by block.
    """

    def whole(params, *args, **options):
        return denoise(sharding.gathered(params, mesh), *args, **options)

    def by_block(params, *args, **options):
        params = sharding.gathered_outside_stack(params, mesh)
        gather = functools.partial(sharding.gathered_layer, mesh=mesh)
        return denoise(params, *args, gather=gather, **options)

    return for_cpus(sharding.on_cpus(mesh))(by_block if config.network.is_stack else whole)


def guided(config: c.Config, denoise: Denoise, scale: float) -> Denoise:
    """The denoiser with classifier-free guidance of this scale, as its network is guided."""
    return guidance.guided(denoise, scale, config.network.condition.null, guided_channels(config))


def guided_channels(config: c.Config) -> int | None:
    """Of a sample that guidance acts on, the first; None: all."""
    channels = config.teacher.guided_channels
    if channels is None:
        channels = config.network.guided_channels
    return channels if channels and channels < config.network.image_channels else None


def any_captions(config: c.Config, shape: tuple[int, ...]) -> Caption | None:
    """Random numbers for captions of a text-to-image network; None of any other."""
    condition = config.network.condition
    return condition.draw(key(config, "evaluation"), shape) if condition.reads_prompts else None
