"""The composition root: a Config becomes the objects that training and evaluation run.

In the order in which data flows: choices, denoiser, pretraining, distillation, samplers. No
mathematics.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from simjax import config as c
from simjax import data, sharding
from simjax.data import conditions
from simjax.diffusion import noise, precondition, sampler, schedule
from simjax.losses import distances, sim
from simjax.networks.denoiser import Denoiser, as_denoise
from simjax.networks.song_unet import SongUNet
from simjax.train import optim, state, step, teacher_step
from simjax.train.compile import Call, compile_steps
from simjax.typing import Array, Denoise, Images, Key, Labels, Params, PerExample, Scalar

COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

CHOICES = {
    "compute_dtype": COMPUTE_DTYPES,
    "data.name": data.SOURCES,
    "network.embedding": ("positional", "fourier"),
    "network.encoder": ("standard", "residual"),
    "teacher.precondition": precondition.PRECONDITIONS,
    "teacher.weight": noise.WEIGHTS,
    "teacher.sigma.law": schedule.SIGMA_LAWS,
    "generator.weight": noise.WEIGHTS,
    "generator.sigma.law": schedule.SIGMA_LAWS,
    "fake_score.weight": noise.WEIGHTS,
    "fake_score.sigma.law": schedule.SIGMA_LAWS,
    "loss.name": step.LOSSES,
    "loss.distance": distances.DISTANCES,
    "loss.units": ("denoiser", "score"),
}


def check(config: c.Config, devices: int) -> None:
    """Refuses a config that names unknown things or does not fit together.

    Raises:
      ConfigError: with the field, what it may be and the remedy.
    """
    c.validate(config, CHOICES, devices)


def denoiser(config: c.Config) -> tuple[Denoise, Params]:
    """D(params, xt, sigma, labels) and freshly initialised parameters, drawn from config.seed."""
    network = SongUNet(
        **dataclasses.asdict(config.network),
        dtype=COMPUTE_DTYPES[config.compute_dtype],
        rngs=nnx.Rngs(config.seed),
    )
    family = precondition.PRECONDITIONS[config.teacher.precondition]
    if family is precondition.edm:
        family = functools.partial(family, sigma_data=config.teacher.sigma_data)
    return as_denoise(Denoiser(network, family))


def image_shape(config: c.Config) -> tuple[int, int, int]:
    """(height, width, channels) of one image."""
    return (config.network.resolution,) * 2 + (config.network.image_channels,)


@dataclasses.dataclass(frozen=True)
class Training:
    """A compiled training call and what it starts from: state = init(params)."""

    call: Call
    init: Callable[[Params], Any]
    steps: int
    steps_per_call: int
    batch: int


def pretraining(config: c.Config, denoise: Denoise, mesh: Mesh) -> Training:
    """Training of a teacher on config.data."""
    teacher = config.teacher
    images, classes = data.SOURCES[config.data.name]()
    labels = conditions.one_hot(classes, config.network.label_dim)
    tx = _adam(teacher.optim, teacher.steps)

    def draw_data(key: Key) -> tuple[Images, Labels]:
        batch = conditions.draw_data(key, images, labels, teacher.batch)
        return sharding.split_batch(batch, mesh)

    fns = teacher_step.TeacherFns(
        denoise=denoise,
        weight=_weight(teacher.weight, config),
        draw_data=draw_data,
        draw_sigma=functools.partial(_draw_sigma, law=teacher.sigma, batch=teacher.batch),
        tx=tx,
        ema_decay=_ema_decay(teacher.ema, teacher.batch),
    )

    def one_step(carry, constants, key):
        return teacher_step.teacher_step(carry, key, fns=fns)

    return Training(
        call=compile_steps(one_step, mesh=mesh, steps_per_call=config.steps_per_call),
        init=functools.partial(state.init_pretraining, tx=tx),
        steps=teacher.steps,
        steps_per_call=config.steps_per_call,
        batch=teacher.batch,
    )


def distillation(config: c.Config, denoise: Denoise, mesh: Mesh) -> Training:
    """Distillation of a teacher; the call's constants are the teacher's parameters."""
    fns = step_fns(config, denoise, mesh)
    return Training(
        call=compile_steps(
            functools.partial(step.distill_step, fns=fns),
            mesh=mesh,
            steps_per_call=config.steps_per_call,
        ),
        init=functools.partial(
            state.init_distillation, fake_score_tx=fns.fake_score_tx, generator_tx=fns.generator_tx
        ),
        steps=config.steps,
        steps_per_call=config.steps_per_call,
        batch=config.batch,
    )


def step_fns(config: c.Config, denoise: Denoise, mesh: Mesh) -> step.StepFns:
    """Everything that one distillation step calls."""
    generator, fake_score = config.generator, config.fake_score
    return step.StepFns(
        denoise=denoise,
        loss=generator_loss(config),
        distance=distance(config.loss),
        fake_score_weight=_weight(fake_score.weight, config),
        draw_fake_score=functools.partial(_draws, config=config, law=fake_score.sigma, mesh=mesh),
        draw_generator=functools.partial(_draws, config=config, law=generator.sigma, mesh=mesh),
        fake_score_tx=_adam(fake_score.optim, config.steps),
        generator_tx=_adam(generator.optim, config.steps),
        ema_decay=_ema_decay(generator.ema, config.batch),
        sigma_init=generator.sigma_init,
        fake_score_scale=fake_score.scale,
        accumulate=config.accumulate,
    )


def distance(loss: c.Loss) -> distances.Distance:
    """d of SIM, with its options."""
    options = {"c": loss.c, "delta": loss.delta, "exponent": loss.exponent, "rate": loss.rate}
    return distances.bind(loss.distance, **options)


def generator_loss(config: c.Config) -> Callable[[Images, Images, Images, PerExample], PerExample]:
    """(x0, d_teacher, d_fake, sigma) -> the method's loss of each example, weighted and scaled."""
    options = {"sim": {"distance": distance(config.loss)}, "sid": {"alpha": config.loss.alpha}}
    method = functools.partial(step.LOSSES[config.loss.name], **options.get(config.loss.name, {}))
    weight = _weight(config.generator.weight, config)

    def loss(x0, d_teacher, d_fake, sigma):
        scale = config.loss.scale * weight(sigma)
        if config.loss.units == "score":
            x0, d_teacher, d_fake = sim.score_units(sigma, x0, d_teacher, d_fake)
        return method(x0, d_teacher, d_fake, scale)

    return loss


def teacher_sampler(denoise: Denoise, steps: int) -> Callable[[Params, Images, Labels], Images]:
    """(params, z, labels) -> samples by deterministic Heun on EDM's ladder, 2 * steps - 1 NFE."""

    def sample(params, z, labels):
        def conditioned(xt, sigma):
            return denoise(params, xt, sigma, labels)

        return sampler.heun(conditioned, z, schedule.karras_ladder(steps))

    return jax.jit(sample)


def one_step_sampler(
    denoise: Denoise, sigma_init: float
) -> Callable[[Params, Images, Labels], Images]:
    """(params, z, labels) -> samples by one evaluation at sigma_init."""

    def sample(params, z, labels):
        return denoise(params, sigma_init * z, jnp.full(z.shape[0], sigma_init), labels)

    return jax.jit(sample)


def _draws(key: Key, *, config: c.Config, law: c.Sigma, mesh: Mesh) -> step.Draws:
    z_key, label_key, sigma_key, eps_key, dropout_key = jax.random.split(key, 5)
    shape = (config.batch, *image_shape(config))
    draws = step.Draws(
        z=jax.random.normal(z_key, shape),
        labels=conditions.draw_labels(label_key, config.batch, config.network.label_dim),
        sigma=_draw_sigma(sigma_key, law=law, batch=config.batch),
        eps=jax.random.normal(eps_key, shape),
        dropout_keys=jax.random.split(dropout_key, config.batch),
    )
    return sharding.split_batch(draws, mesh)


def _draw_sigma(key: Key, *, law: c.Sigma, batch: int) -> PerExample:
    options = {
        "lognormal": ("mean", "std", "low", "high"),
        "karras": ("t_max", "sigma_min", "sigma_max", "rho"),
    }[law.law]
    values = {name: getattr(law, name) for name in options}
    return schedule.SIGMA_LAWS[law.law](key, batch, **values)


def _weight(name: str, config: c.Config) -> Callable[[PerExample], PerExample]:
    weight = noise.WEIGHTS[name]
    if weight is noise.edm_weight:
        return functools.partial(weight, sigma_data=config.teacher.sigma_data)
    return weight


def _adam(options: c.Optim, steps: int) -> optim.GradientTransformation:
    return optim.adam(steps=steps, **dataclasses.asdict(options))


def _ema_decay(options: c.Ema, batch: int) -> Callable[[Array], Scalar]:
    def decay(steps_done):
        images_seen = steps_done.astype(jnp.float32) * batch
        return optim.ema_decay(images_seen, batch, **dataclasses.asdict(options))

    return decay
