"""Builds pretraining and distillation from a config.

No mathematics here: it selects functions of losses/, diffusion/, data/ and train/ by name and
passes them to the training step.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from simjax import config as c
from simjax import data
from simjax.config.options import options_of
from simjax.data import augment, conditions
from simjax.diffusion import guidance, noise, schedule
from simjax.errors import ConfigError
from simjax.losses import distances, registry, sim
from simjax.models import build
from simjax.models.generator import generator_of
from simjax.runtime import sharding
from simjax.train import optim, state, step, teacher_step, update
from simjax.train.compile import Training, training
from simjax.train.discriminator import Discriminator
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
    """Training of a teacher with the denoising loss.

    The compiled call's constants are (images, class numbers, captions) of the whole data set.
    """
    teacher, condition = config.teacher, config.network.condition
    tx = _adam(teacher.optim, teacher.steps)

    def draw_data(
        key: Key, images: Array, classes: Array, captions: Caption | None
    ) -> tuple[Images, Condition]:
        x0, drawn = conditions.draw_data(key, images, classes, teacher.batch)
        if captions is None:
            cond = condition.of(drawn)
        else:
            cond = conditions.caption_of(jax.random.fold_in(key, 1), drawn, captions)
        if teacher.drop_condition:
            drop_key = jax.random.fold_in(key, 2)
            cond = guidance.dropped(drop_key, cond, condition.null, teacher.drop_condition)
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
    config: c.Config,
    denoise: Denoise,
    mesh: Mesh,
    updates: Sequence[update.Update] | None = None,
) -> Training:
    """Distillation of a teacher into a generator.

    The compiled call's constants are train/update.py's Constants.

    Args:
      updates: the updates of a step; by default those of `updates_of`.
    """
    if updates is None:
        updates = updates_of(config, step_fns(config, denoise, mesh), mesh)
    txs = {f"{each.role}_tx": each.tx for each in updates}
    return training(
        functools.partial(step.distill_step, updates=updates),
        functools.partial(state.init_distillation, **txs),
        mesh=mesh,
        steps=config.steps,
        steps_per_call=config.steps_per_call,
        batch=config.batch,
    )


def frozen(config: c.Config, teacher: Params) -> Params:
    """Casts the teacher's parameters to teacher.dtype."""
    return jax.tree.map(lambda leaf: leaf.astype(build.DTYPES[config.teacher.dtype]), teacher)


def updates_a_step(config: c.Config) -> int:
    """Number of updates per step: fake score updates plus one generator update.

    >>> updates_a_step(c.Config(fake_score_updates=5))
    6
    """
    return config.fake_score_updates + 1


def reads_a_step(config: c.Config) -> int:
    """Number of updates per step that read real images.

    >>> reads_a_step(c.Config()), reads_a_step(c.Config(loss=c.Loss(name="real_uid")))
    (0, 1)
    """
    return config.fake_score_updates if c.needs_real_images(config) else 0


def arguments_like(
    config: c.Config, made: Training, params: Params, real: Any = None
) -> tuple[Any, ...]:
    """Shapes, dtypes and shardings of the distillation call's arguments.

    Args:
      made: the distillation.
      params: the teacher's parameters, or their shapes.
      real: shapes of the real images; by default those of one step's prefetched images.
    """
    teacher = jax.eval_shape(functools.partial(frozen, config), params)
    captions = jax.eval_shape(functools.partial(any_captions, config))
    state = jax.eval_shape(made.init, params, params)
    run_key = jax.eval_shape(functools.partial(build.key, config, "distillation"))
    whole = sharding.replicated(made.mesh)
    return (
        sharding.abstract(state, made.mesh),
        update.Constants(
            sharding.abstract(teacher, made.mesh),
            sharding.abstract_rows(captions, made.mesh),
            real or sharding.abstract_rows(real_like(config, 1), made.mesh),
        ),
        jax.ShapeDtypeStruct(run_key.shape, run_key.dtype, sharding=whole),
    )


def any_captions(config: c.Config) -> Caption | None:
    """Random caption embeddings for one step; None without captions."""
    return build.any_captions(config, (1, updates_a_step(config), config.batch))


def real_like(config: c.Config, steps: int, dtype: np.dtype = np.uint8) -> update.ImageRows | None:
    """Shapes of the real images of a call; None without real images."""
    rows = (steps, reads_a_step(config), config.batch)
    if not rows[1]:
        return None
    images = jax.ShapeDtypeStruct((*rows, *build.image_shape(config)), dtype)
    labels = jax.ShapeDtypeStruct(rows, np.int32) if config.network.label_dim else None
    return update.ImageRows(images, labels)


def step_fns(config: c.Config, denoise: Denoise, mesh: Mesh) -> step.StepFns:
    """The functions that the losses of a distillation step call."""
    fake_score, (learnt, used) = config.fake_score, c.fake_score_scales(config)
    denoise, generator = build.on_devices(denoise, mesh, config), generator_of(config)
    return step.StepFns(
        denoise=build.guided(config, denoise, learnt),
        generate=functools.partial(generator.train_sample, denoise),
        denoise_teacher=build.guided(config, denoise, config.teacher.guidance),
        denoise_fake=build.guided(config, denoise, used),
        loss=generator_loss(config, distance(config.loss)),
        distance=distance(config.loss),
        fake_score_weight=_weight(fake_score.weight, config),
        augment=_augment(fake_score.augment),
        pair_loss=_pair_loss(config.loss),
        discriminator=_discriminator(config),
        fake_score_scale=fake_score.scale,
        calls=generator.evaluations,
    )


def updates_of(config: c.Config, fns: step.StepFns, mesh: Mesh) -> list[update.Update]:
    """Updates of a step: fake score (fake_score_updates times), then the generator."""
    generator, fake_score = config.generator, config.fake_score
    before = {"fake_score": None, "generator": None}  # whole-batch values for slices
    if fns.discriminator is not None:
        of_slices = functools.partial(step.before_generator, slices=config.accumulate)
        before = {"fake_score": step.before_fake_score, "generator": of_slices}
        before = {role: functools.partial(act, fns=fns) for role, act in before.items()}
    start = math.ceil(generator.start / config.batch)
    of_fake_score = update.Update(
        "fake_score",
        functools.partial(step.of_fake_score, fns=fns),
        functools.partial(
            _draws, config=config, law=fake_score.sigma, mesh=mesh, drop=fake_score.drop_condition
        ),
        _adam(fake_score.optim, config.steps * config.fake_score_updates),
        accumulate=config.accumulate,
        before=before["fake_score"],
        reads_real=reads_a_step(config) > 0,
    )
    of_generator = update.Update(
        "generator",
        functools.partial(step.of_generator, fns=fns),
        functools.partial(_draws, config=config, law=generator.sigma, mesh=mesh),
        _adam(generator.optim, max(config.steps - start, 1)),
        accumulate=config.accumulate,
        start=start,
        before=before["generator"],
        then=functools.partial(
            step.follow, ema_decay=_ema_decay(generator.ema, config.batch), pull=fake_score.pull
        ),
    )
    return [of_fake_score] * config.fake_score_updates + [of_generator]


def distance(loss: c.Loss) -> distances.Distance:
    """SIM's distance d(y), with its options."""
    return distances.bind(loss.distance, **options_of(distances.DISTANCES[loss.distance], loss))


def generator_loss(config: c.Config, distance: distances.Distance) -> step.GeneratorLoss:
    """(x0, d_teacher, d_fake, sigma) -> per-example generator loss, weighted and scaled."""
    chosen = registry.LOSSES[config.loss.name]
    options = options_of(chosen, config.loss)
    if "distance" in options:  # a name in the config, a function here
        options["distance"] = distance
    method = functools.partial(chosen, **options)
    weight = _weight(config.generator.weight, config)

    def loss(x0, d_teacher, d_fake, sigma):
        scale = config.loss.scale * weight(sigma)
        if config.loss.units == "score":
            x0, d_teacher, d_fake = sim.score_units(sigma, x0, d_teacher, d_fake)
        return method(x0, d_teacher, d_fake, scale)

    return loss


def _pair_loss(loss: c.Loss) -> step.PairLoss | None:
    """The fake score's loss on generated and real images, or None."""
    chosen = registry.WITH_REAL_IMAGES.get(loss.name)
    return chosen and functools.partial(chosen, **options_of(chosen, loss))


def _discriminator(config: c.Config) -> Discriminator | None:
    options = dataclasses.asdict(config.adversarial)
    if not config.adversarial.fake_score_scale:
        return None
    return Discriminator(**options | {"start": math.ceil(options["start"] / config.batch)})


def grid_inputs(config: c.Config, cond: Condition, mesh: Mesh) -> tuple[Images, Condition, Array]:
    """z, cond and keys of all sample grids of a run.

    Sharded over the devices if their number divides config.grid**2, otherwise replicated.

    Args:
      cond: conditions of the config.grid**2 images, numpy.
    """
    count = config.grid**2
    divides = count % mesh.size == 0  # then evaluation's batches reuse the compiled program
    where = sharding.batch_split(mesh) if divides else sharding.replicated(mesh)

    def draw() -> tuple[Images, Array]:
        z_key, noise_key = jax.random.split(build.key(config, "pictures"))
        z = jax.random.normal(z_key, (count, *build.image_shape(config)))
        return z, jax.random.split(noise_key, count)

    z, keys = jax.jit(draw, out_shardings=where)()
    cond = jax.tree.map(lambda leaf: sharding.placed(leaf, where), cond)
    return z, cond, keys


def open_data(config: c.Config, path: str = "data") -> data.Dataset:
    """Opens config.data or config.real and checks it against the network.

    Args:
      path: "data" or "real".

    Raises:
      ConfigError: the source cannot be opened, or images or classes do not match the network.
    """
    chosen = c.get_field(config, path)
    dataset = data.open(chosen.source, split=chosen.split)
    found = (tuple(dataset.shape), dataset.label_dim)
    expected = (build.pixel_shape(config), config.network.label_dim)
    if found[0] != expected[0] or (expected[1] and found[1] != expected[1]):
        raise ConfigError(
            f"{path}.source = {chosen.source!r} has images of {found[0]} and {found[1]} "
            f"classes; the network takes {expected[0]} and {expected[1]}."
        )
    return dataset


def _draws(
    key: Key,
    captions: Caption | None = None,
    shared_key: Key | None = None,
    real: update.AllImages | update.ImageRows | None = None,
    *,
    config: c.Config,
    law: c.Sigma,
    mesh: Mesh,
    drop: float = 0.0,
) -> update.Draws:
    z_key, label_key, sigma_key, eps_key, dropout_key, augment_key = jax.random.split(key, 6)
    shape = (config.batch, *build.image_shape(config))
    condition, cond = config.network.condition, captions
    images = None
    if real is not None:
        images, cond = _draw_real(jax.random.fold_in(key, 7), real, config)
    elif captions is None:
        cond = condition.draw(label_key, config.batch)
    if drop:
        cond = guidance.dropped(jax.random.fold_in(label_key, 1), cond, condition.null, drop)
    draws = update.Draws(
        z=jax.random.normal(z_key, shape),
        cond=cond,
        sigma=_draw_sigma(sigma_key, law=law, batch=config.batch),
        eps=jax.random.normal(eps_key, shape),
        dropout_keys=jax.random.split(dropout_key, config.batch),
        augment_keys=jax.random.split(augment_key, config.batch),
        real=images,
    )
    draws, generator = sharding.split_batch(draws, mesh), generator_of(config)
    if generator.evaluations == 1:
        return draws
    keys = jax.random.split(jax.random.fold_in(key, 6), config.batch)  # as a seventh of the above
    return draws.replace(
        calls=jax.random.randint(shared_key, (), 1, generator.evaluations + 1),
        noise_keys=sharding.split_batch(keys, mesh),
    )


def _draw_real(
    key: Key, real: update.AllImages | update.ImageRows, config: c.Config
) -> tuple[update.RealDraws, Condition]:
    """A batch of real images with conditions, drawn here or prefetched."""
    dropout_key, augment_key, index_key = jax.random.split(key, 3)
    if isinstance(real, update.AllImages):
        index = jax.random.randint(index_key, (config.batch,), 0, len(real.images))
        real = jax.tree.map(lambda leaf: leaf[index], real)
    drawn = update.RealDraws(
        images=data.to_unit(real.images),
        dropout_keys=jax.random.split(dropout_key, config.batch),
        augment_keys=jax.random.split(augment_key, config.batch),
    )
    classes = np.zeros(config.batch, np.int32) if real.labels is None else real.labels
    return drawn, config.network.condition.of(classes)


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
    return functools.partial(augment.augment, p=probability) if probability else step.not_augmented
