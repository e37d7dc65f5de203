"""Validation of configs, common to all commands."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from simjax.config import schema, serial
from simjax.config.levels import generator_levels
from simjax.config.real_images import require_logits, require_real_images
from simjax.config.scales import GUIDANCE, fake_score_scales
from simjax.diffusion.families import FAMILIES
from simjax.diffusion.sampler import SOLVERS
from simjax.errors import ConfigError
from simjax.runtime.values import require_known

# Fields whose empty value is replaced by the default of the teacher's family.
OF_FAMILY = (
    "teacher.sampler.ladder",
    "teacher.sampler.solver",
    "teacher.sigma.law",
    "teacher.weight",
)


def validate(config: schema.Config, choices: dict[str, Collection[str]], devices: int) -> None:
    """Checks values and combinations of fields.

    Args:
      choices: allowed names, by dotted field.
      devices: number of devices that a batch is split over.

    Raises:
      ConfigError: names the field, its value, the expected values and the remedy.
    """
    for path, known in choices.items():
        value = serial.get_field(config, path)
        if value or path not in OF_FAMILY:
            require_known(path, value, known)
    for path in ("steps", "batch", "accumulate", "steps_per_call", "log_every", "sample_every"):
        _require_positive(config, path)
    for path in ("checkpoint_every", "keep_checkpoints", "checkpoint_limit", "fsdp"):
        _require_positive(config, path)
    for path in (
        "teacher.batch",
        "generator.optim.lr",
        "fake_score.optim.lr",
        "generator.sigma_init",
        "fake_score_updates",
        "evaluation.samples",
    ):
        _require_positive(config, path)
    generator_levels(config.generator)
    require_real_images(config)
    if config.generator.start < 0:
        raise ConfigError(f"generator.start = {config.generator.start}: expected 0 or more images.")
    if not 0 <= config.fake_score.pull <= 1:
        raise ConfigError(f"fake_score.pull = {config.fake_score.pull}: expected 0 to 1.")
    if config.batch % config.accumulate:
        raise ConfigError(
            f"batch = {config.batch} is not divisible by accumulate = {config.accumulate}."
        )
    for path, batch in [
        ("batch", config.batch // config.accumulate),
        ("teacher.batch", config.teacher.batch if config.teacher.steps else 0),
    ]:
        if batch % devices:
            slices = config.accumulate if path == "batch" else 1
            fitting = math.ceil(batch / devices) * devices * slices
            raise ConfigError(
                f"{path}: {batch} examples at a time cannot be split over {devices} devices; "
                f"use a multiple of {devices}, e.g. --config.{path}={fitting}."
            )
    seen = ("log_every", "sample_every", "checkpoint_every", "evaluation.every")
    for path in ("steps", "teacher.steps", *seen):
        if serial.get_field(config, path) % config.steps_per_call:
            raise ConfigError(
                f"{path} = {serial.get_field(config, path)} is not a multiple of steps_per_call = "
                f"{config.steps_per_call}: the host runs only between compiled calls. "
                "Change it, or use --config.steps_per_call=1."
            )


def require_teacher(config: schema.Config) -> None:
    """Raises unless the config sets or trains exactly one teacher.

    Raises:
      ConfigError: lists the fields to set or to leave out.
    """
    source, steps, network = config.teacher.source, config.teacher.steps, config.network
    for name, part in (("teacher", config.teacher), ("generator", config.generator)):
        if part.family and not part.source:
            raise ConfigError(
                f"{name}.family = {part.family!r} applies to the file in {name}.source, which is "
                f"empty; set --config.{name}.source=FILE, or leave family out."
            )
    if source and (steps or network is not None):
        raise ConfigError(
            f"teacher.source = {source!r} is pretrained and includes its network; leave out "
            "network and teacher.steps."
        )
    if not source and not (steps > 0 and network is not None and config.data.source):
        raise ConfigError(
            "there is no teacher: set a pretrained one, e.g. --config.teacher.source="
            "edm-cifar10-32x32-cond-vp, or train one, which needs teacher.steps (now "
            f"{steps}), network and data.source."
        )


def complete(
    config: schema.Config, network: schema.Network, precondition: str, sigma_data: float
) -> schema.Config:
    """Adds the teacher's network and preconditioning to a config.

    Raises:
      ConfigError: the network does not support the requested augmentation, dropout, guidance or
        discriminator.
    """
    if config.dropout is not None:
        if not hasattr(network, "dropout"):
            raise ConfigError(
                f"dropout = {config.dropout}, but {type(network).__name__} has no dropout; leave "
                "it out."
            )
        network = dataclasses.replace(network, dropout=config.dropout)
    require_null_condition(config, network)
    require_logits(config, network)
    for path in ("teacher.augment", "fake_score.augment"):
        if serial.get_field(config, path) and network.augment_dim != schema.AUGMENT_DIM:
            raise ConfigError(
                f"{path} = {serial.get_field(config, path)}, but the network has augment_dim = "
                f"{network.augment_dim}, not {schema.AUGMENT_DIM}; set --config.{path}=0."
            )
    teacher = dataclasses.replace(config.teacher, precondition=precondition, sigma_data=sigma_data)
    return resolved(dataclasses.replace(config, network=network, teacher=teacher))


DROPPED = 0.1  # SiD-LSG; also used to train DiT and PixArt-alpha


def _with_dropping(config: schema.Config) -> schema.Config:
    """Sets fake_score.drop_condition if it is None: 0.1 with guidance, else 0."""
    if config.fake_score.drop_condition is not None or config.guidance not in ("", *GUIDANCE):
        return config
    dropped = 0.0 if fake_score_scales(config) == (1, 1) else DROPPED
    fake_score = dataclasses.replace(config.fake_score, drop_condition=dropped)
    return dataclasses.replace(config, fake_score=fake_score)


def resolved(config: schema.Config) -> schema.Config:
    """Fills empty sampler, sigma law and weight with the family's defaults.

    If the family is only known from the teacher's file, the sampler stays empty. Fields without
    effect, such as the sigma law of a pretrained teacher, get EDM's defaults.

    >>> options = schema.Config(teacher=schema.Teacher(precondition="flow", steps=10))
    >>> sampler = resolved(options).teacher.sampler
    >>> sampler.ladder, sampler.solver
    ('flow', 'euler')
    """
    teacher, known = config.teacher, FAMILIES.get(config.teacher.precondition)
    if known is None:
        return config  # validate() rejects the name
    sampler, sigma = teacher.sampler, teacher.sigma
    if not (teacher.source and config.network is None):
        own = {} if sampler.ladder else _unset(sampler, known.ladder_options)
        solver = sampler.solver or known.solver
        needed = SOLVERS[solver].ladder if solver in SOLVERS else ""
        own |= {"ladder": sampler.ladder or needed or known.ladder, "solver": solver}
        sampler = dataclasses.replace(sampler, **own)
    trained = known
    if teacher.source or not teacher.steps:
        trained = FAMILIES[schema.Teacher.precondition]
    if not sigma.law:
        own = _unset(sigma, trained.law_options)
        sigma = dataclasses.replace(sigma, law=trained.law, **own)
    teacher = dataclasses.replace(
        teacher, sampler=sampler, sigma=sigma, weight=teacher.weight or trained.weight
    )
    return _with_dropping(dataclasses.replace(config, teacher=teacher))


def _unset(record: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options whose fields are still at the record's defaults."""
    plain = type(record)()
    return {name: v for name, v in options.items() if getattr(record, name) == getattr(plain, name)}


def require_null_condition(config: schema.Config, network: schema.Network) -> None:
    """Raises if guidance is set but the network has no null condition.

    Raises:
      ConfigError: names the field and the remedy.
    """
    lacks = not network.condition.has_null
    if lacks and config.guidance:
        raise ConfigError(
            f"guidance = {config.guidance!r}, but diffusers' PixArt folders lack the learned "
            "null-caption embedding; use the original .pth, or leave guidance out."
        )
    for path in ("teacher.guidance", "fake_score.guidance", "fake_score.learnt_guidance"):
        if lacks and serial.get_field(config, path) != 1:
            raise ConfigError(
                f"{path} = {serial.get_field(config, path)}, but diffusers' PixArt folders lack "
                "the learned null-caption embedding; use the original .pth, or set "
                f"--config.{path}=1."
            )


def pick(method: str, **known: Callable[[], schema.Config]) -> schema.Config:
    """The variant of a config file selected by --config=FILE:METHOD.

    Raises:
      ConfigError: the file has no such variant; lists the known ones.

    >>> pick("sid", sim=lambda: schema.Config(), sid=lambda: schema.Config(batch=8)).batch
    8
    """
    require_known("method (after the colon of --config)", method, known)
    return known[method]()


def _require_positive(config: schema.Config, path: str) -> None:
    if not serial.get_field(config, path) > 0:
        raise ConfigError(f"{path} = {serial.get_field(config, path)} must be positive.")
