"""Refuses config fields that are set but have no effect.

The keyword arguments of a sigma law, loss, distance or ladder function declare the fields that it
reads. A field named neither there nor in `choices` is read by every run. Called from check.py when
a run starts; opening a stored run does not check its fields.
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
# Fields read only when a teacher is trained here, besides its preconditioning (FAMILY).
PRETRAINING = ("batch", "sigma", "weight", "augment", "drop_condition", "optim", "ema")
FAMILY = ("teacher.precondition", "teacher.sigma_data")
CHURN = ("churn", "churn_low", "churn_high", "churn_inflation")
CAPTIONS = ("text.t5", "text.length", "text.words", "text.templates", "text.held_out")
COMPARISON = ("limit", "features", "metrics", "samples", "every", "online_samples", "best")
# Fields without effect on a network in Python code, which simjax neither builds nor decodes.
OF_OUR_NETWORKS = ("compute_dtype", "remat", "scan_blocks", "text", "autoencoder")


class Choice(NamedTuple):
    """A setting, and which other fields have an effect under it.

    Attributes:
      name: as shown in messages, e.g. "loss.name = 'sim'".
      unread: dotted fields, or groups of fields, without effect.
      read: related fields that do have an effect.
    """

    name: str
    unread: Collection[str]
    read: Collection[str] = ()


def require_read(config: c.Config, saved: c.Config | None = None) -> None:
    """Raises if any field is set but has no effect.

    Args:
      saved: config of the run to resume; values that it already holds are accepted.

    Raises:
      ConfigError: with these fields, why they have no effect, and which fields apply instead.

    >>> require_read(c.Config(loss=c.Loss(alpha=1.0)))
    Traceback (most recent call last):
    ...
    simjax.errors.ConfigError: these fields are set but have no effect:
      loss.alpha = 1.0 with loss.name = 'sim'; applicable fields: loss.distance
    Remove them, or reset them with: --config.loss.alpha=1.2
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
        "\n".join(
            [
                "these fields are set but have no effect:",
                *lines,
                "Remove them, or reset them with: " + " ".join(back),
            ]
        )
    )


def without_effect(config: c.Config) -> dict[str, Choice]:
    """Fields that are set but have no effect, each with the reason.

    >>> without_effect(c.Config(loss=c.Loss(alpha=1.0)))["loss.alpha"].name
    "loss.name = 'sim'"
    """
    config, default = c.resolved(config), c.resolved(c.Config())
    made, found = tuple(choices(config)), {}
    for path in set_fields(config, default):
        why = next((choice for choice in made if _covers(choice.unread, path)), None)
        if why is not None:
            found[path] = why
    return found


def choices(config: c.Config) -> Iterator[Choice]:
    """Yields every setting that leaves other fields without effect."""
    config = c.resolved(config)
    for path in SIGMAS:
        yield _of(config, f"{path}.law", schedule.SIGMA_LAWS)
    # Every method's metrics use the distance (train/health.py).
    yield _of(config, "loss.name", registry.LOSSES, always=("distance",))
    yield _of(config, "loss.distance", distances.DISTANCES)
    if config.teacher.sampler.ladder:  # otherwise known only once the teacher's file is read
        yield _of(config, "teacher.sampler.ladder", schedule.LADDERS)
    yield from _churn(config.teacher.sampler)
    yield from _teacher(config)
    if config.guidance:
        scales = ["fake_score.guidance", "fake_score.learnt_guidance"]
        of_teacher = ["teacher.guidance"]  # unread by presets for an unguided teacher
        follows = 2.0 in GUIDANCE[config.guidance](2.0)
        unread, read = (scales, of_teacher) if follows else (scales + of_teacher, ())
        yield Choice(f"guidance = {config.guidance!r}", unread, read)
    yield from _generator(config.generator)
    yield from _real_images(config)
    yield from _text(config)
    yield from _evaluation(config)
    yield from _network(config)


def set_fields(record: Any, default: Any, path: str = "") -> Iterator[str]:
    """Dotted names of fields that differ from `default` and their class's default.

    Sigma(law="karras") thus sets only its law, whatever the mean in `default` is. A network counts
    as one field.

    >>> list(set_fields(c.Config(seed=3, loss=c.Loss(c=0.1)), c.Config()))
    ['seed', 'loss.c']
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
    """Choice of a named function: other functions' options are not read."""
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
    """Choices of the teacher's source and training.

    Without training and without a source, the teacher was passed in as a model.
    """
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
        yield Choice("a one-step generator", ("generator.renoise",), ("generator.steps",))


def _real_images(config: c.Config) -> Iterator[Choice]:
    options = config.adversarial
    if not c.needs_real_images(config):
        methods = ("loss.name", "adversarial.fake_score_scale")
        yield Choice("a method without real images", ("real",), methods)
    if not (options.generator_scale or options.divergence):
        parts = ("adversarial.generator_scale", "adversarial.divergence")
        yield Choice("no discriminator in the generator's loss", ("adversarial.start",), parts)


def _text(config: c.Config) -> Iterator[Choice]:
    network = known_network(config)
    if network is not None and not network.condition.reads_prompts:
        return  # covered by `_network`
    if config.text.templates:
        yield Choice("text.templates", ("text.cache",), CAPTIONS)
        return
    unread = set(CAPTIONS) - {"text.templates"}
    if network is None or not network.condition.limit:
        unread -= {"text.length"}  # truncates the prompts that are sampled
    yield Choice("text.templates = ()", unread, ("text.cache",))


def _evaluation(config: c.Config) -> Iterator[Choice]:
    options, source = config.evaluation, config.data.source
    comparison = [f"evaluation.{name}" for name in COMPARISON]
    reference = ("evaluation.reference", "data.source")
    always = ("evaluation.teacher_steps", "evaluation.batch")
    if not (options.reference or source):
        yield Choice("no reference to compare samples with", comparison, (*reference, *always))
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
        yield Choice("no data set with splits", ("data.split",), reference)


def _network(config: c.Config) -> Iterator[Choice]:
    """Fields that the network does not read, if it is known."""
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
        shown = name if network.of_latents else f"the pixel-space network {type(network).__name__}"
        yield Choice(shown, [field for field, is_so in lacks.items() if is_so])
    if not network.label_dim and not reads_prompts:
        both = ("teacher", "fake_score")
        unread = [f"{of}.{field}" for of in both for field in ("guidance", "drop_condition")]
        unread += ["fake_score.learnt_guidance", "guidance", "teacher.guided_channels"]
        yield Choice(f"{name} without classes", unread)


def known_network(config: c.Config) -> c.Network | None:
    """The network of the config or a known teacher, otherwise None."""
    entry = zoo.ZOO.get(config.teacher.source)
    return config.network or (entry.network if entry else None)


def _covers(fields: Collection[str], path: str) -> bool:
    return any(path == field or path.startswith(f"{field}.") for field in fields)


def _reason(why: Choice) -> str:
    applies = f"; applicable fields: {', '.join(sorted(why.read))}" if why.read else ""
    return f"with {why.name}{applies}"
