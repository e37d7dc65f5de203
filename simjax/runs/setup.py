"""A config becomes what training runs: pretraining, distillation, all that a step calls.

No mathematics: it chooses among functions of losses/, diffusion/, data/ and train/.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from simjax import config as c
from simjax import data
from simjax.config.options import options_of
from simjax.data import augment, conditions
from simjax.diffusion import guidance, noise, schedule
from simjax.errors import ConfigError
from simjax.losses import distances, registry, sim
from simjax.models import build
from simjax.runtime import sharding
from simjax.train import optim, state, step, teacher_step
from simjax.train.compile import Training, training
from simjax.typing import (
    Array,
    Caption,
    Condition,
    Denoise,
    Images,
    Key,
    Params,
    PerExample,
    Scalar,
)


def pretraining(config: c.Config, denoise: Denoise, mesh: Mesh) -> Training:
    """Training of a teacher; the call's constants are all (images, class numbers, captions)."""
    teacher = config.teacher
    tx = _adam(teacher.optim, teacher.steps)

    def draw_data(
        key: Key, images: Array, classes: Array, captions: Caption | None
    ) -> tuple[Images, Condition]:
        x0, drawn = conditions.draw_data(key, images, classes, teacher.batch)
        if captions is None:
            cond = conditions.one_hot(drawn, config.network.label_dim)
        else:
            cond = conditions.caption_of(jax.random.fold_in(key, 1), drawn, captions)
        if teacher.drop_condition:
            cond = guidance.dropped(jax.random.fold_in(key, 2), cond, teacher.drop_condition)
        return sharding.split_batch((data.to_unit(x0), cond), mesh)

    fns = teacher_step.TeacherFns(
        denoise=build.on_devices(denoise, mesh, config),
        weight=_weight(teacher.weight, config),
        draw_data=draw_data,
        draw_sigma=functools.partial(_draw_sigma, law=teacher.sigma, batch=teacher.batch),
        augment=_augment(teacher.augment),
        tx=tx,
        ema_decay=_ema_decay(teacher.ema, teacher.batch),
    )

    return training(
        functools.partial(teacher_step.teacher_step, fns=fns),
        functools.partial(state.init_pretraining, tx=tx),
        mesh=mesh,
        steps=teacher.steps,
        steps_per_call=config.steps_per_call,
        batch=teacher.batch,
    )


def distillation(
    config: c.Config, denoise: Denoise, mesh: Mesh, fns: step.StepFns | None = None
) -> Training:
    """Distillation of a teacher; the call's constants are step.Constants.

    Args:
      fns: by default step_fns of the others.
    """
    fns = fns or step_fns(config, denoise, mesh)
    return training(
        functools.partial(step.distill_step, fns=fns),
        functools.partial(
            state.init_distillation, fake_score_tx=fns.fake_score_tx, generator_tx=fns.generator_tx
        ),
        mesh=mesh,
        steps=config.steps,
        steps_per_call=config.steps_per_call,
        batch=config.batch,
    )


def frozen(config: c.Config, teacher: Params) -> Params:
    """The teacher's parameters as distillation keeps them, in teacher.dtype."""
    return jax.tree.map(lambda leaf: leaf.astype(build.DTYPES[config.teacher.dtype]), teacher)


def arguments_like(config: c.Config, made: Training, params: Params) -> tuple[Any, ...]:
    """Shapes, types and shardings of what distillation's call takes; `params` may be shapes."""
    teacher = jax.eval_shape(functools.partial(frozen, config), params)
    captions = jax.eval_shape(functools.partial(build.any_captions, config, (1, 2, config.batch)))
    state = jax.eval_shape(made.init, params, params)
    run_key = jax.eval_shape(functools.partial(build.key, config, "distillation"))
    whole = sharding.replicated(made.mesh)
    return (
        sharding.abstract(state, made.mesh),
        step.Constants(
            sharding.abstract(teacher, made.mesh),
            sharding.abstract_captions(captions, made.mesh),
        ),
        jax.ShapeDtypeStruct(run_key.shape, run_key.dtype, sharding=whole),
    )


def step_fns(config: c.Config, denoise: Denoise, mesh: Mesh) -> step.StepFns:
    """Everything that one distillation step calls."""
    generator, fake_score = config.generator, config.fake_score
    denoise = build.on_devices(denoise, mesh, config)
    return step.StepFns(
        denoise=denoise,
        denoise_teacher=guidance.guided(denoise, config.teacher.guidance),
        denoise_fake=guidance.guided(denoise, fake_score.guidance),
        loss=generator_loss(config, distance(config.loss)),
        distance=distance(config.loss),
        fake_score_weight=_weight(fake_score.weight, config),
        draw_fake_score=functools.partial(
            _draws, config=config, law=fake_score.sigma, mesh=mesh, drop=fake_score.drop_condition
        ),
        draw_generator=functools.partial(_draws, config=config, law=generator.sigma, mesh=mesh),
        fake_score_tx=_adam(fake_score.optim, config.steps),
        generator_tx=_adam(generator.optim, config.steps),
        ema_decay=_ema_decay(generator.ema, config.batch),
        augment=_augment(fake_score.augment),
        sigma_init=generator.sigma_init,
        fake_score_scale=fake_score.scale,
        accumulate=config.accumulate,
    )


def distance(loss: c.Loss) -> distances.Distance:
    """d of SIM, with its options."""
    return distances.bind(loss.distance, **options_of(distances.DISTANCES[loss.distance], loss))


def generator_loss(config: c.Config, distance: distances.Distance) -> step.GeneratorLoss:
    """(x0, d_teacher, d_fake, sigma) -> the method's loss of each example, weighted and scaled."""
    chosen = registry.LOSSES[config.loss.name]
    options = options_of(chosen, config.loss)
    if "distance" in options:  # by its name there
        options["distance"] = distance
    method = functools.partial(chosen, **options)
    weight = _weight(config.generator.weight, config)

    def loss(x0, d_teacher, d_fake, sigma):
        scale = config.loss.scale * weight(sigma)
        if config.loss.units == "score":
            x0, d_teacher, d_fake = sim.score_units(sigma, x0, d_teacher, d_fake)
        return method(x0, d_teacher, d_fake, scale)

    return loss


def grid_inputs(config: c.Config, cond: Condition, mesh: Mesh) -> tuple[Images, Condition, Array]:
    """z, cond and keys of every sample picture of a run; split over devices if they divide them.

    Args:
      cond: of config.grid**2 pictures, numpy.
    """
    count = config.grid**2
    divides = count % mesh.size == 0  # as evaluation's batches, which then run the same program
    where = sharding.batch_split(mesh) if divides else sharding.replicated(mesh)

    def draw() -> tuple[Images, Array]:
        z_key, noise_key = jax.random.split(build.key(config, "pictures"))
        z = jax.random.normal(z_key, (count, *build.image_shape(config)))
        return z, jax.random.split(noise_key, count)

    z, keys = jax.jit(draw, out_shardings=where)()
    cond = jax.tree.map(lambda leaf: sharding.placed(leaf, where), cond)
    return z, cond, keys


def open_data(config: c.Config) -> data.Dataset:
    """config.data, whose images and labels are of the network's shape.

    Raises:
      ConfigError: they are not, or the source cannot be opened.
    """
    dataset = data.open(config.data.source, split=config.data.split)
    found = (tuple(dataset.shape), dataset.label_dim)
    expected = (build.pixel_shape(config), config.network.label_dim)
    if found[0] != expected[0] or (expected[1] and found[1] != expected[1]):
        raise ConfigError(
            f"data.source = {config.data.source!r} has images of {found[0]} and {found[1]} "
            f"classes; the network takes {expected[0]} and {expected[1]}."
        )
    return dataset


def _draws(
    key: Key,
    captions: Caption | None = None,
    *,
    config: c.Config,
    law: c.Sigma,
    mesh: Mesh,
    drop: float = 0.0,
) -> step.Draws:
    z_key, label_key, sigma_key, eps_key, dropout_key, augment_key = jax.random.split(key, 6)
    shape = (config.batch, *build.image_shape(config))
    cond = captions
    if captions is None:
        cond = conditions.draw_labels(label_key, config.batch, config.network.label_dim)
    if drop:
        cond = guidance.dropped(jax.random.fold_in(label_key, 1), cond, drop)
    draws = step.Draws(
        z=jax.random.normal(z_key, shape),
        cond=cond,
        sigma=_draw_sigma(sigma_key, law=law, batch=config.batch),
        eps=jax.random.normal(eps_key, shape),
        dropout_keys=jax.random.split(dropout_key, config.batch),
        augment_keys=jax.random.split(augment_key, config.batch),
    )
    return sharding.split_batch(draws, mesh)


def _draw_sigma(key: Key, *, law: c.Sigma, batch: int) -> PerExample:
    draw = schedule.SIGMA_LAWS[law.law]
    return draw(key, batch, **options_of(draw, law))


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


def _augment(probability: float) -> step.Augment:
    return functools.partial(augment.augment, p=probability) if probability else step.as_they_are
