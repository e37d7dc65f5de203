"""Which fields of a config have no effect under its other fields; those are refused when set.

A law of noise levels, a loss, a distance and a ladder declare what they read by the keywords of
their functions. A field that neither these nor `choices` name is read by every run. Called from
check.py at the start of a new run; a stored one opens whatever its config holds.
"""

import dataclasses
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from simjax import config as c
from simjax import data
from simjax.config.options import keywords
from simjax.config.scales import GUIDANCE
from simjax.diffusion import noise, sampler, schedule
from simjax.diffusion.families import FAMILIES
from simjax.errors import ConfigError
from simjax.losses import distances, registry
from simjax.porting import zoo

SIGMAS = ("teacher.sigma", "generator.sigma", "fake_score.sigma")
# What trains a teacher here, beside the coefficients of its family.
PRETRAINING = ("batch", "sigma", "weight", "augment", "drop_condition", "optim", "ema")
FAMILY = ("teacher.precondition", "teacher.sigma_data")
CHURN = ("churn", "churn_low", "churn_high", "churn_inflation")
CAPTIONS = ("text.t5", "text.length", "text.words", "text.templates", "text.held_out")
COMPARISON = ("limit", "features", "metrics", "samples", "every", "online_samples", "best")
# Of a network in Python code, which simjax neither builds nor decodes.
OF_OUR_NETWORKS = ("compute_dtype", "remat", "scan_blocks", "text", "autoencoder")


class Choice(NamedTuple):
    """A choice of a config, and what it makes of the fields that depend on it.

    Attributes:
      name: as a message names it, e.g. "loss.name = 'sim'".
      unread: dotted fields, or groups of them, that have no effect with it.
      read: those that have, in their place.
    """

    name: str
    unread: Collection[str]
    read: Collection[str] = ()


def require_read(config: c.Config, saved: c.Config | None = None) -> None:
    """Refuses fields that are set and have no effect.

    Args:
      saved: of the run that goes on; what it holds already is accepted.

    Raises:
      ConfigError: with these fields, why they have no effect, and what applies.
    """
    found = without_effect(config)
    values = {path: c.get_field(config, path) for path in found}
    if saved is not None:
        news = (path for path, value in values.items() if value != c.get_field(saved, path))
        found = {path: found[path] for path in news}
    if not found:
        return
    lines = [f"  {path} = {values[path]!r} {_reason(why)}" for path, why in found.items()]
    back = [f"--config.{path}={shlex.quote(str(c.get_field(c.Config(), path)))}" for path in found]
    raise ConfigError(
        "\n".join(["set, but without effect:", *lines, "Leave out, or set back: " + " ".join(back)])
    )


def without_effect(config: c.Config) -> dict[str, Choice]:
    """The fields that are set and have no effect, each with a choice that explains it."""
    config, default = c.resolved(config), c.resolved(c.Config())
    made, found = tuple(choices(config)), {}
    for path in set_fields(config, default):
        why = next((choice for choice in made if _covers(choice.unread, path)), None)
        if why is not None:
            found[path] = why
    return found


def choices(config: c.Config) -> Iterator[Choice]:
    """Every choice of a config that leaves other fields without effect."""
    config = c.resolved(config)
    for path in SIGMAS:
        yield _of(config, f"{path}.law", schedule.SIGMA_LAWS)
    # The distance is of every method's metrics (train/health.py).
    yield _of(config, "loss.name", registry.LOSSES, always=("distance",))
    yield _of(config, "loss.distance", distances.DISTANCES)
    if config.teacher.sampler.ladder:  # else the teacher's file tells its family
        yield _of(config, "teacher.sampler.ladder", schedule.LADDERS)
    yield from _churn(config.teacher.sampler)
    yield from _teacher(config)
    if config.guidance:
        scales = ["fake_score.guidance", "fake_score.learnt_guidance"]
        of_teacher = ["teacher.guidance"]  # of presets that are for one without guidance
        follows = 2.0 in GUIDANCE[config.guidance](2.0)
        unread, read = (scales, of_teacher) if follows else (scales + of_teacher, ())
        yield Choice(f"guidance = {config.guidance!r}", unread, read)
    yield from _generator(config.generator)
    yield from _real_images(config)
    yield from _text(config)
    yield from _evaluation(config)
    yield from _network(config)


def set_fields(record: Any, default: Any, path: str = "") -> Iterator[str]:
    """Dotted names of fields that are neither `default`'s nor their class's own; a network is one.

    So Sigma(law="karras") sets its law alone, whatever the mean in `default` is.
    """
    for field in dataclasses.fields(record):
        value, dotted = getattr(record, field.name), f"{path}.{field.name}".lstrip(".")
        if dataclasses.is_dataclass(value) and dotted != "network":
            yield from set_fields(value, getattr(default, field.name), dotted)
        elif value not in (getattr(default, field.name), field.default):
            yield dotted


def _of(
    config: c.Config, path: str, known: Mapping[str, Callable], always: Collection[str] = ()
) -> Choice:
    """A choice of a function by its name, beside which stand its options and its siblings'."""
    parent, name = path.rpartition(".")[0], c.get_field(config, path)
    here = {field.name for field in dataclasses.fields(c.get_field(config, parent))}
    taken = here.intersection(keywords(known[name]))
    others = here.intersection(n for one in known.values() for n in keywords(one))
    others -= taken.union(always)
    unread, read = ({f"{parent}.{option}" for option in names} for names in (others, taken))
    return Choice(f"{path} = {name!r}", unread, read)


def _churn(options: c.Sampler) -> Iterator[Choice]:
    churn = [f"teacher.sampler.{name}" for name in CHURN]
    if options.solver and "churn" not in sampler.SOLVERS[options.solver].options:
        yield Choice(f"teacher.sampler.solver = {options.solver!r}", churn)
    elif not options.churn:
        yield Choice("teacher.sampler.churn = 0", churn[1:], churn[:1])


def _teacher(config: c.Config) -> Iterator[Choice]:
    """A network without training, and without a source, is one that came complete."""
    teacher, trained = config.teacher, config.teacher.steps > 0
    pretraining = [f"teacher.{name}" for name in PRETRAINING]
    of_any = ("teacher.sampler", "teacher.dtype", "teacher.guidance")
    if teacher.source:
        unread = pretraining if config.network else [*pretraining, *FAMILY]
        yield Choice(f"teacher.source = {teacher.source!r}", unread, ("teacher.sha256", *of_any))
        return
    yield Choice("teacher.source = ''", ("teacher.sha256",))
    if not trained:
        yield Choice("teacher.steps = 0", pretraining, of_any)
    weights = [part.weight for part in (teacher, config.generator, config.fake_score)]
    reads = FAMILIES[teacher.precondition].reads_sigma_data or any(
        "sigma_data" in keywords(noise.WEIGHTS[weight]) for weight in weights[not trained :]
    )
    if trained and not reads:
        chosen = f"teacher.precondition = {teacher.precondition!r} and no weight 'edm'"
        yield Choice(chosen, ("teacher.sigma_data",))


def _generator(options: c.Generator) -> Iterator[Choice]:
    if options.levels:
        yield Choice("generator.levels", ("generator.sigma_init", "generator.shift"))
    if len(options.levels or (options.steps or 1) * (0,)) == 1:
        yield Choice("one call of the generator", ("generator.renoise",), ("generator.steps",))


def _real_images(config: c.Config) -> Iterator[Choice]:
    options = config.adversarial
    if not c.needs_real_images(config):
        methods = ("loss.name", "adversarial.fake_score_scale")
        yield Choice("a method that learns from no real images", ("real",), methods)
    if not (options.generator_scale or options.divergence):
        parts = ("adversarial.generator_scale", "adversarial.divergence")
        yield Choice("no discriminator in the generator's loss", ("adversarial.start",), parts)


def _text(config: c.Config) -> Iterator[Choice]:
    network = known_network(config)
    if network is not None and not network.condition.reads_prompts:
        return  # `_network` refuses all of it
    if config.text.templates:
        yield Choice("text.templates", ("text.cache",), CAPTIONS)
        return
    unread = set(CAPTIONS) - {"text.templates"}
    if network is None or not network.condition.limit:
        unread -= {"text.length"}  # cuts the prompts that samples are drawn for
    yield Choice("text.templates = ()", unread, ("text.cache",))


def _evaluation(config: c.Config) -> Iterator[Choice]:
    options, source = config.evaluation, config.data.source
    comparison = [f"evaluation.{name}" for name in COMPARISON]
    reference = ("evaluation.reference", "data.source")
    always = ("evaluation.teacher_steps", "evaluation.batch")
    if not (options.reference or source):
        yield Choice("nothing to compare samples with", comparison, (*reference, *always))
    if not options.features:
        unread = ("evaluation.metrics", "evaluation.limit", "evaluation.best")
        yield Choice("evaluation.features = ()", unread)
    if not options.every:
        unread = ("evaluation.online_samples", "evaluation.best")
        yield Choice("evaluation.every = 0", unread, ("evaluation.samples",))
    trains = config.teacher.steps > 0 and not config.teacher.source
    needed = trains or not options.reference or "classifier" in options.features
    if not needed:
        yield Choice(
            "evaluation.reference and no training on data", ("data.source",), reference[:1]
        )
    splits = source and needed or options.reference.partition(":")[0] in data.SOURCES
    if not splits:
        yield Choice("no data of several splits", ("data.split",), reference)


def _network(config: c.Config) -> Iterator[Choice]:
    """What a network does not have; nothing while only the teacher's file tells the network."""
    network = known_network(config)
    if network is None:
        return
    name, reads_prompts = f"the network {type(network).__name__}", network.condition.reads_prompts
    if isinstance(network, c.Own):
        yield Choice("a network in Python code", OF_OUR_NETWORKS)
    else:
        lacks = {
            "scan_blocks": not network.is_stack,
            "autoencoder": not network.of_latents,
            "text": not reads_prompts,
        }
        told = name if network.of_latents else f"{name} of pixels"
        yield Choice(told, [field for field, is_so in lacks.items() if is_so])
    if not network.label_dim and not reads_prompts:
        both = ("teacher", "fake_score")
        unread = [f"{of}.{field}" for of in both for field in ("guidance", "drop_condition")]
        unread += ["fake_score.learnt_guidance", "guidance", "teacher.guided_channels"]
        yield Choice(f"{name} without classes", unread)


def known_network(config: c.Config) -> c.Network | None:
    """The config's or its teacher's, if that has a known name; only the file tells others."""
    entry = zoo.ZOO.get(config.teacher.source)
    return config.network or (entry.network if entry else None)


def _covers(fields: Collection[str], path: str) -> bool:
    return any(path == field or path.startswith(f"{field}.") for field in fields)


def _reason(why: Choice) -> str:
    applies = f"; what applies: {', '.join(sorted(why.read))}" if why.read else ""
    return f"with {why.name}{applies}"
