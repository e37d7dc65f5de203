"""The composition root: a Config becomes the objects that training and evaluation run.

In the order in which data flows: choices, denoiser, pretraining, distillation, samplers. No
mathematics.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from simjax import config as c
from simjax import data, fields
from simjax.data import augment, conditions
from simjax.diffusion import guidance, noise, precondition, sampler, schedule
from simjax.errors import ConfigError
from simjax.evaluation import evaluator, features
from simjax.losses import distances, sim
from simjax.networks.adm_unet import AdmUNet
from simjax.networks.denoiser import Denoiser, as_denoise
from simjax.networks.dit import DiT
from simjax.networks.layers import REMAT
from simjax.networks.pixart import PIXELS, PixArt
from simjax.networks.song_unet import SongUNet
from simjax.runtime import sharding
from simjax.runtime.cpu import for_cpus
from simjax.train import optim, state, step, teacher_step
from simjax.train.compile import Call, compile_steps
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

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

NETWORKS = {c.SongUNet: SongUNet, c.AdmUNet: AdmUNet, c.DiT: DiT, c.PixArt: PixArt}
SAMPLERS = {"heun": "Heun", "euler": "Euler", "dpm_solver": "DPM-Solver++"}  # for a person
CAPTION_LENGTH = 120  # tokens that PixArt-alpha reads at most
# Families whose networks put out variances too, which D drops.
LEARNED_VARIANCE = ("iddpm", "ddpm_linear")

CHOICES = {
    "compute_dtype": DTYPES,
    "remat": REMAT,
    "teacher.dtype": DTYPES,
    "teacher.precondition": precondition.PRECONDITIONS,
    "teacher.weight": noise.WEIGHTS,
    "teacher.sampler.ladder": ("karras", "ddpm_linear"),
    "teacher.sampler.solver": sampler.SOLVERS,
    "teacher.sigma.law": schedule.SIGMA_LAWS,
    "generator.weight": noise.WEIGHTS,
    "generator.sigma.law": schedule.SIGMA_LAWS,
    "fake_score.weight": noise.WEIGHTS,
    "fake_score.sigma.law": schedule.SIGMA_LAWS,
    "loss.name": step.LOSSES,
    "loss.distance": distances.DISTANCES,
    "loss.units": ("denoiser", "score"),
}
SONG_CHOICES = {
    "network.embedding": ("positional", "fourier"),
    "network.encoder": ("standard", "residual"),
}


def check(config: c.Config, devices: int, saved: c.Config | None = None) -> None:
    """Refuses a config of a run that is not possible, or has fields without effect.

    Args:
      saved: the config that the run began with, if it goes on.

    Raises:
      ConfigError: with the field, what it may be and the remedy.
    """
    check_values(config, devices)
    fields.require_read(config, saved)


def check_values(config: c.Config, devices: int) -> None:
    """Refuses a config that names unknown things or does not fit together.

    Raises:
      ConfigError: with the field, what it may be and the remedy.
    """
    check_evaluation(config.evaluation)
    inside = SONG_CHOICES if isinstance(config.network, c.SongUNet) else {}
    c.validate(config, CHOICES | inside, devices)


def check_evaluation(options: c.Evaluation) -> None:
    """Refuses feature spaces and metrics that are not known.

    Raises:
      ConfigError: listing those that are.
    """
    for name in options.features:
        c.require_known("evaluation.features", name, features.EXTRACTORS)
    for name in options.metrics:
        c.require_known("evaluation.metrics", name, evaluator.METRICS)


def network(
    options: c.Network,
    precondition: str,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    remat: str = "none",
    unroll: bool = False,
) -> nnx.Module:
    """F of a preconditioning family, freshly initialised; `unroll` is for stacks of blocks."""
    outputs = options.image_channels * (2 if precondition in LEARNED_VARIANCE else 1)
    values = dataclasses.asdict(options) | {"out_channels": outputs}
    if is_stack(options):
        values["unroll"] = unroll
    return NETWORKS[type(options)](**values, remat=remat, dtype=dtype, rngs=rngs)


def is_stack(options: c.Network) -> bool:
    """Whether the network is a stack of equal blocks."""
    return isinstance(options, c.DiT | c.PixArt)


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
    family = precondition.PRECONDITIONS[teacher.precondition]
    if family is precondition.edm:
        family = functools.partial(family, sigma_data=teacher.sigma_data)
    dtype = DTYPES[config.compute_dtype]
    rngs = rngs or nnx.Rngs(config.seed)
    inside = network(
        config.network, teacher.precondition, dtype, rngs, config.remat, not config.scan_blocks
    )
    return Denoiser(inside, family)


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


def count(params: Params) -> int:
    """How many numbers a tree of parameters holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def image_shape(config: c.Config) -> tuple[int, int, int]:
    """(height, width, channels) of one sample of the network: an image, or its latents."""
    return (config.network.resolution,) * 2 + (config.network.image_channels,)


def pixel_shape(config: c.Config) -> tuple[int, int, int]:
    """(height, width, channels) of an image."""
    if not config.autoencoder:
        return image_shape(config)
    return (PIXELS * config.network.resolution,) * 2 + (3,)


def mesh(config: c.Config, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices, in the shape that the config asks for."""
    return sharding.make_mesh(config.fsdp, devices)


@dataclasses.dataclass(frozen=True)
class Training:
    """A training call and what makes its first state.

    Args:
      call: (state, constants, run key) -> (state, metrics); compiled at its first use.
      init: the first state, split over the mesh, from parameters (train/state.py).
    """

    call: Call
    init: Callable[..., Any]
    mesh: Mesh
    steps: int
    steps_per_call: int
    batch: int


def _training(
    step: Callable, init: Callable, config: c.Config, mesh: Mesh, *, steps: int, batch: int
) -> Training:
    def first_state(*params: Params) -> Any:
        where = sharding.by_rules(jax.eval_shape(init, *params), mesh)
        return jax.jit(init, out_shardings=where)(*params)

    return Training(
        call=compile_steps(step, mesh=mesh, steps_per_call=config.steps_per_call),
        init=first_state,
        mesh=mesh,
        steps=steps,
        steps_per_call=config.steps_per_call,
        batch=batch,
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
            cond = conditions.dropped(jax.random.fold_in(key, 2), cond, teacher.drop_condition)
        return sharding.split_batch((data.to_unit(x0), cond), mesh)

    fns = teacher_step.TeacherFns(
        denoise=_on_devices(denoise, mesh, config),
        weight=_weight(teacher.weight, config),
        draw_data=draw_data,
        draw_sigma=functools.partial(_draw_sigma, law=teacher.sigma, batch=teacher.batch),
        augment=_augment(teacher.augment),
        tx=tx,
        ema_decay=_ema_decay(teacher.ema, teacher.batch),
    )

    return _training(
        functools.partial(teacher_step.teacher_step, fns=fns),
        functools.partial(state.init_pretraining, tx=tx),
        config,
        mesh,
        steps=teacher.steps,
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
    taken = step.sharing_step if config.share_samples else step.distill_step
    return _training(
        functools.partial(taken, fns=fns),
        functools.partial(
            state.init_distillation, fake_score_tx=fns.fake_score_tx, generator_tx=fns.generator_tx
        ),
        config,
        mesh,
        steps=config.steps,
        batch=config.batch,
    )


def frozen(config: c.Config, teacher: Params) -> Params:
    """The teacher's parameters as distillation keeps them, in teacher.dtype."""
    return jax.tree.map(lambda leaf: leaf.astype(DTYPES[config.teacher.dtype]), teacher)


def arguments_like(config: c.Config, training: Training, params: Params) -> tuple[Any, ...]:
    """Shapes, types and shardings of what distillation's call takes; `params` may be shapes."""
    teacher = jax.eval_shape(functools.partial(frozen, config), params)
    captions = jax.eval_shape(functools.partial(any_captions, config, (1, 2, config.batch)))
    state = jax.eval_shape(training.init, params, params)
    run_key = jax.eval_shape(functools.partial(key, config, "distillation"))
    whole = sharding.replicated(training.mesh)
    return (
        sharding.abstract(state, training.mesh),
        step.Constants(
            sharding.abstract(teacher, training.mesh),
            sharding.abstract_captions(captions, training.mesh),
        ),
        jax.ShapeDtypeStruct(run_key.shape, run_key.dtype, sharding=whole),
    )


def step_fns(config: c.Config, denoise: Denoise, mesh: Mesh) -> step.StepFns:
    """Everything that one distillation step calls."""
    generator, fake_score = config.generator, config.fake_score
    denoise = _on_devices(denoise, mesh, config)
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
    return distances.bind(loss.distance, **fields.options(distances.DISTANCES[loss.distance], loss))


def generator_loss(config: c.Config, distance: distances.Distance) -> step.GeneratorLoss:
    """(x0, d_teacher, d_fake, sigma) -> the method's loss of each example, weighted and scaled."""
    chosen = step.LOSSES[config.loss.name]
    options = fields.options(chosen, config.loss)
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


def teacher_sampler(
    denoise: Denoise, config: c.Config, steps: int, mesh: Mesh
) -> Callable[[Params, Images, Condition, Array], Images]:
    """(params, z, cond, keys) -> samples by teacher.sampler, guided by teacher.guidance.

    One key an example draws the churn's noise.
    """
    denoise = guidance.guided(_on_devices(denoise, mesh, config), config.teacher.guidance)
    options = config.teacher.sampler
    solver = sampler.SOLVERS[options.solver]
    churn = _churn(options) if solver.churns else None

    def sample(params, z, cond, keys):
        def conditioned(xt, sigma):
            return denoise(params, xt, sigma, cond)

        def draw_noise(index):
            return _normal(jax.vmap(jax.random.fold_in, (0, None))(keys, index), z.shape[1:])

        extra = {"churn": churn, "draw_noise": draw_noise} if churn else {}
        return solver.sample(conditioned, z, _ladder(options, steps), **extra)

    return jax.jit(sample)


def evaluations(teacher: c.Teacher, steps: int) -> int:
    """Of the network for each sample, in so many steps."""
    return calls(teacher) * sampler.SOLVERS[teacher.sampler.solver].evaluations(steps)


def calls(teacher: c.Teacher) -> int:
    """Of the network that one evaluation of the teacher costs: two with guidance."""
    return 1 if teacher.guidance == 1 else 2


def _ladder(options: c.Sampler, steps: int) -> Array:
    ladder = schedule.LADDERS[options.ladder]
    return ladder(steps, **fields.options(ladder, options))


def _churn(options: c.Sampler) -> sampler.Churn | None:
    """None for none, whose range and inflation have no effect."""
    if not options.churn:
        return None
    names = ("churn", "churn_low", "churn_high", "churn_inflation")
    return sampler.Churn(*(getattr(options, name) for name in names))


def one_step_sampler(
    denoise: Denoise, config: c.Config, mesh: Mesh
) -> Callable[[Params, Images, Condition, Array], Images]:
    """(params, z, cond, keys) -> samples by one evaluation at sigma_init; keys are not used."""
    denoise, sigma_init = _on_devices(denoise, mesh, config), config.generator.sigma_init

    def sample(params, z, cond, keys):
        return denoise(params, sigma_init * z, jnp.full(z.shape[0], sigma_init), cond)

    return jax.jit(sample)


PURPOSES = ("pretraining", "distillation", "pictures", "evaluation")


def key(config: c.Config, purpose: str) -> Key:
    """One root key a run, one branch a purpose."""
    return jax.random.fold_in(jax.random.key(config.seed), PURPOSES.index(purpose))


def key_on(config: c.Config, purpose: str, mesh: Mesh) -> Key:
    """The same key on every device of a mesh."""
    make = functools.partial(key, config, purpose)
    return jax.jit(make, out_shardings=sharding.replicated(mesh))()


def grid_inputs(config: c.Config, cond: Condition, mesh: Mesh) -> tuple[Images, Condition, Array]:
    """z, cond and keys of every sample picture of a run; split over devices if they divide them.

    Args:
      cond: of config.grid**2 pictures, numpy.
    """
    count = config.grid**2
    divides = count % mesh.size == 0  # as evaluation's batches, which then run the same program
    where = sharding.batch_split(mesh) if divides else sharding.replicated(mesh)

    def draw() -> tuple[Images, Array]:
        z_key, noise_key = jax.random.split(key(config, "pictures"))
        z = jax.random.normal(z_key, (count, *image_shape(config)))
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
    expected = (pixel_shape(config), config.network.label_dim)
    if found[0] != expected[0] or (expected[1] and found[1] != expected[1]):
        raise ConfigError(
            f"data.source = {config.data.source!r} has images of {found[0]} and {found[1]} "
            f"classes; the network takes {expected[0]} and {expected[1]}."
        )
    return dataset


def _on_devices(denoise: Denoise, mesh: Mesh, config: c.Config) -> Denoise:
    """The denoiser in the forms of the mesh's devices, of parameters that are split over them.

    A stack's parameters are gathered block by block.
    """

    def whole(params, *args, **options):
        return denoise(sharding.gathered(params, mesh), *args, **options)

    def by_block(params, *args, **options):
        params = sharding.gathered_outside_stack(params, mesh)
        gather = functools.partial(sharding.gathered_layer, mesh=mesh)
        return denoise(params, *args, gather=gather, **options)

    return for_cpus(sharding.on_cpus(mesh))(by_block if is_stack(config.network) else whole)


def any_captions(config: c.Config, shape: tuple[int, ...]) -> Caption | None:
    """Random numbers for captions of a text-to-image network; None of any other."""
    if not isinstance(config.network, c.PixArt):
        return None
    length = config.network.caption_length or CAPTION_LENGTH
    return conditions.draw_captions(
        key(config, "evaluation"), shape, length, config.network.caption_channels
    )


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
    shape = (config.batch, *image_shape(config))
    cond = captions
    if captions is None:
        cond = conditions.draw_labels(label_key, config.batch, config.network.label_dim)
    if drop:
        cond = conditions.dropped(jax.random.fold_in(label_key, 1), cond, drop)
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
    return draw(key, batch, **fields.options(draw, law))


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


def _normal(keys: Array, shape: tuple[int, ...]) -> Images:
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
