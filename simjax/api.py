"""What a notebook cell calls: load, sample, look, distil. Exported by simjax/__init__.py.

    import simjax

    teacher = simjax.load("runs/digits", network="teacher")  # or a known name, a URL, a file
    distillation = simjax.Distillation(teacher)
    distillation.train(200)
    simjax.show(simjax.draw(distillation.generator, 20))

Everything stays in memory; `simjax.distill` is the command's run, which resumes.
"""

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm.auto import tqdm

from simjax import config as c
from simjax.data.image_file import CHANNELS
from simjax.errors import ConfigError
from simjax.losses.distances import Distance
from simjax.models import build, samplers, stored
from simjax.models.generator import Generator, with_calls, with_generator
from simjax.models.model import Model, require_fit
from simjax.models.open import NETWORKS, Wanted, is_export, open_model
from simjax.runs import check, distill, real, report, setup
from simjax.runtime import processes, settings, sharding, values
from simjax.runtime.monitor import grid, to_uint8
from simjax.train import health, step, update
from simjax.train.update import Update
from simjax.typing import Condition, Denoise, Float, Int, Metrics, Params, Scalar

LOAD = "simjax.load(SOURCE) makes one, or simjax.from_function"
FETCH = 20  # steps between looks at the metrics; our choice


@settings.independent
def load(
    source: str | os.PathLike[str],
    *,
    network: str | None = None,
    family: str = "",
    config: c.Config | None = None,
    encoder: str | os.PathLike[str] = "",
    autoencoder: str | os.PathLike[str] = "",
) -> Model:
    """A run's generator or teacher; an export; published weights: a known name, a URL, a file.

    Args:
      source: as --source of simjax sample.
      network: of a run directory, "generator" (the newest, its EMA; the default), "best" (the one
        that evaluation.best has kept) or "teacher".
      family: "dit" or "sit", for a .pt file of either, which does not tell which.
      config: of published weights, the settings that they are distilled and sampled with; a run
        and an export have their own.
      encoder: folder of the T5 encoder that reads prompts, with its tokenizer; a run that wrote
        its captions has its own.
      autoencoder: folder of diffusers' AutoencoderKL; without one, latents are drawn as they are.

    Raises:
      ConfigError: it cannot be had, or an argument has no effect on this source.
    """
    source, encoder, autoencoder = (
        values.path(name, value)
        for name, value in (("source", source), ("encoder", encoder), ("autoencoder", autoencoder))
    )
    if config is not None:
        values.instance("config", config, c.Config, "simjax.Config(...) makes one")
    if network is not None:
        c.require_known("network", network, NETWORKS)
    run = stored.find_run(source)
    is_own = run is None and not is_export(source)  # published weights have no config of their own
    if network is not None and run is None:
        raise ConfigError(f"{source} is no run directory, and has one network; leave network out.")
    if config is not None and not is_own:
        what = "an export" if run is None else "a run"
        raise ConfigError(f"{source} is {what} with its own config; leave config out.")
    if run is not None and encoder and run[1].text.templates:
        raise ConfigError(f"{source} is a run with its own encoder; leave encoder out.")

    def adjusted(found: c.Config) -> c.Config:
        found = config if config is not None else found
        return dataclasses.replace(found, autoencoder=autoencoder or found.autoencoder)

    pictures = run is not None or bool(autoencoder)
    wanted = Wanted(captions=True, encoder=encoder, prompts=True, pictures=pictures)
    given = {"network": network or "generator", "family": family, "adjusted": adjusted}
    opened = open_model(source, wanted, **given)
    return dataclasses.replace(opened.model, params=opened.params, is_generator=opened.is_generator)


@settings.independent
def from_function(
    denoise: Denoise,
    params: Params,
    *,
    shape: tuple[int, int, int],
    classes: int = 0,
    config: c.Config | None = None,
) -> Model:
    """A teacher of your own: any JAX function that denoises, and its parameters.

    Args:
      denoise: (params, xt, sigma, cond) -> E[x0 | xt]: xt (b, h, w, c), sigma (b,), cond one-hot
        (b, classes). Fake score and generator are the same function of other parameters.
      params: any tree of float arrays; float64 becomes float32.
      shape: (height, width, channels) of a sample; squares only. Points of the plane: (1, 1, 2).
      classes: 0 if there is no condition.
      config: settings; by default simjax.config's.

    Raises:
      ConfigError: what it returns has another shape than what it is given.
    """
    if not callable(denoise):
        raise ConfigError(f"denoise is {values.shown(denoise)}, expected a function.")
    if not isinstance(shape, Sequence) or len(shape) != 3:
        raise ConfigError(f"shape = {shape!r}: expected (height, width, channels).")
    shape = tuple(values.whole_number("each number of shape", side, 1) for side in shape)
    classes = values.whole_number("classes", classes, 0)
    if config is not None:
        values.instance("config", config, c.Config, "simjax.Config(...) makes one")
    height, width, channels = shape
    if height != width:
        raise ConfigError(f"shape = {shape}: samples are squares, of equal height and width.")
    network = c.Own(resolution=height, image_channels=channels, label_dim=classes)
    given = config or c.Config()
    config = c.complete(given, network, given.teacher.precondition, given.teacher.sigma_data)
    params = jax.tree.map(_at_most_float32, params)

    def denoise_plainly(params, xt, sigma, cond, *, augment_labels=None, dropout_keys=None):
        return denoise(params, xt, sigma, cond)

    images, sigma, cond = (
        jax.ShapeDtypeStruct(size, np.float32) for size in ((2, *shape), (2,), (2, classes))
    )
    out = jax.eval_shape(denoise, params, images, sigma, cond)
    found = getattr(out, "shape", type(out))
    if found != images.shape:
        raise ConfigError(f"denoise returns {found} for xt of {images.shape}: not the same.")
    mesh = build.mesh(config)
    provenance = {"source": f"the function {getattr(denoise, '__name__', denoise)}"}
    return Model(config, mesh, denoise_plainly, sharding.place(params, mesh), {}, provenance)


@settings.independent
def draw(
    model: Model,
    count: int = 64,
    *,
    labels: Sequence[int] | Int[np.ndarray, "n"] | None = None,
    prompts: Sequence[str] | None = None,
    seed: int = 0,
    steps: int = 0,
) -> Float[np.ndarray, "count h w c"]:
    """Samples in data units, images in [-1, 1]; sample i of a seed is the same for every count.

    A generator makes them by the calls that it was trained for; a teacher by its sampler.

    Args:
      labels: classes, in turn; by default all of them.
      prompts: in turn, of a text-to-image model; or one prompt.
      steps: calls of a generator, by default those of its training; with another number a warning
        tells the levels. Of other models steps of the teacher's sampler, with the guidance of
        model.config.teacher; 0: called as model.config.generator says, once at sigma_init.

    Raises:
      ConfigError: a number is out of range, the model has no such condition, or the samples are
        not finite.
    """
    values.instance("model", model, Model, LOAD)
    count, steps = values.whole_number("count", count, 1), values.whole_number("steps", steps, 0)
    seed = values.seed(seed)
    cond = _condition(model, labels, prompts)
    if steps and model.is_generator:
        config, told = with_calls(model.config, steps)
        if told:
            warnings.warn(told, stacklevel=3)
        model, steps = dataclasses.replace(model, config=config), 0
    if steps:
        sampler = samplers.many_steps(model, steps)
    else:
        (sampler,) = samplers.generated(model, {"generator": model.params})
    drawing = report.drawing_of(model, cond, count, seed)
    return np.concatenate(list(drawing.images(sampler.function, sampler.params)))


def show(
    images: Float[np.ndarray, "n h w c"] | UInt8[np.ndarray, "n h w c"], *, columns: int = 0
) -> Image.Image:
    """A grid of images, which a notebook draws.

    Args:
      images: floats in [-1, 1] or uint8 in 0..255, of 1 or 3 channels; or one image, (h, w, c) or
        (h, w).
      columns: 0: about square.

    Raises:
      ConfigError: none, of other shapes or types, or not finite.
    """
    found = np.asarray(images)
    if found.ndim == 2:
        found = found[..., None]
    found = found[None] if found.ndim == 3 else found
    if found.ndim != 4 or found.shape[-1] not in CHANNELS.values() or not found.size:
        raise ConfigError(
            f"images have shape {np.shape(images)}, expected (n, h, w, 1 or 3) or one image, (h, w)"
            " or (h, w, 1 or 3). Latents become images by load(..., autoencoder=FOLDER)."
        )
    if found.dtype != np.uint8:
        if not jax.numpy.issubdtype(found.dtype, np.floating):
            raise ConfigError(f"images are {found.dtype}, expected floats in [-1, 1], or uint8.")
        found = found.astype(np.float32)
        if not np.isfinite(found).all():
            raise ConfigError("images have pixels that are NaN or infinite; did training diverge?")
        found = to_uint8(found)
    columns = values.whole_number("columns", columns, 0) or math.ceil(math.sqrt(len(found)))
    picture = grid(found, columns)
    return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)


class Distillation:
    """Distils a teacher in memory, as many steps at a time as a cell asks for.

    Args:
      teacher: from `load` or `from_function`.
      config: settings; by default the teacher's. `config.steps` is what learning rates decay over.
      distance: d of SIM, one example's y (h, w, c) to a scalar, instead of the config's; or the
        name of one.
      loss: (x0, d_teacher, d_fake, sigma) -> loss of each example, instead of the config's; its
        gradient is taken with respect to the generator. Or the name of one.
      generator: how it samples (models/generator.py), instead of the config's.
      updates: the updates of a step (train/update.py) from those of the config: a list to a list.

    Attributes:
      state: parameters and optimizer states (train/state.py).
    """

    @settings.independent
    def __init__(
        self,
        teacher: Model,
        config: c.Config | None = None,
        *,
        distance: Distance | str | None = None,
        loss: step.GeneratorLoss | str | None = None,
        generator: Generator | None = None,
        updates: Callable[[list[Update]], list[Update]] | None = None,
    ):
        values.instance("teacher", teacher, Model, LOAD)
        given = teacher.config if config is None else config
        values.instance("config", given, c.Config, "simjax.Config(...) makes one")
        for name, function in (("distance", distance), ("loss", loss), ("updates", updates)):
            is_name = isinstance(function, str) and name != "updates"
            if not (function is None or is_name or callable(function)):
                raise ConfigError(f"{name} = {values.shown(function)}: expected a function.")
        given = _chosen(given, distance, loss, generator)
        made = teacher.config.teacher
        completed = c.complete(given, teacher.config.network, made.precondition, made.sigma_data)
        self._model = dataclasses.replace(
            teacher, config=dataclasses.replace(completed, steps_per_call=1)
        )
        check.check(self._model.config, jax.device_count())
        require_fit(self._model.config.network, teacher.captions)
        fns = setup.step_fns(self._model.config, teacher.denoise, teacher.mesh)
        if callable(distance):
            matching = setup.generator_loss(self._model.config, distance)
            fns = dataclasses.replace(fns, distance=distance, loss=matching)
        if callable(loss):
            fns = dataclasses.replace(fns, loss=loss)
        self._updates = setup.updates_of(self._model.config, fns, teacher.mesh)
        if updates is not None:
            self._updates = updates(self._updates)
            roles = sorted({each.role for each in self._updates})
            if roles != ["fake_score", "generator"]:
                raise ConfigError(
                    f"updates are of {', '.join(roles) or 'nothing'}: expected some of fake_score "
                    "and of generator, as lambda found: [found[0], *found]."
                )
        arguments = (self._model.config, teacher.denoise, teacher.mesh, self._updates)
        training = setup.distillation(*arguments)
        self._call = training.call
        self._key = build.key_on(self._model.config, "distillation", teacher.mesh)
        reads = sum(each.reads_real for each in self._updates)
        self._constants_at = distill.constants_at(
            self._model, len(self._updates), reads, real.open_images(self._model.config)
        )
        self.state = training.init(teacher.params, teacher.params)
        self._metrics: list[dict[str, float]] = []
        self._late: list[Metrics] = []  # still on the device: to look at every step's would stop it

    @settings.independent
    def train(self, steps: int) -> None:
        """Goes on for so many steps; the bar shows both losses."""
        steps = values.whole_number("steps", steps, 0)
        begun = int(self.state.step)
        with tqdm(range(begun, begun + steps), unit="step") as bar:
            for number in bar:
                constants = self._constants_at(number)
                with processes.interrupted_later():  # the state that a call is given is gone
                    self.state, found = self._call(self.state, constants, self._key)
                    self._late.append(found)
                if len(self._late) == FETCH or number == begun + steps - 1:
                    last = self.metrics[-1]
                    bar.set_postfix({k: v for k, v in last.items() if "/loss" in k})

    @property
    def metrics(self) -> list[dict[str, float]]:
        """Of every step so far, also after an interrupted `train`; as metrics.jsonl has them."""
        with processes.interrupted_later():
            found = [health.summarize(each) for each in jax.device_get(self._late)]
            self._metrics += found
            self._late = []
        return self._metrics

    @property
    def generator(self) -> Model:
        """The moving average of the generator, as it is now."""
        return dataclasses.replace(self._with(self.state.ema), is_generator=True)

    @property
    def fake_score(self) -> Model:
        """The denoiser of the generator's samples, as it is now."""
        return self._with(self.state.fake_score)

    @settings.independent
    def loss_and_grad(self, seed: int = 0) -> tuple[Scalar, Params]:
        """The generator's loss on one batch and its gradient, without a step."""
        seed = values.seed(seed)

        number = max(i for i, each in enumerate(self._updates) if each.role == "generator")
        constants = self._constants_at(int(self.state.step))

        def loss(generator: Params, key: Any) -> tuple[Scalar, Any]:
            drawn = update.draws(self.state, constants, key, updates=self._updates)[number]
            return self._updates[number].loss(generator, self.state, constants, drawn)

        (value, _), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
            self.state.generator, jax.random.key(seed)
        )
        return value, grads

    @settings.independent
    def _with(self, params: Params) -> Model:
        """A model of its own: the state is donated to the next step."""
        return dataclasses.replace(self._model, params=jax.tree.map(jax.numpy.copy, params))


def _chosen(
    config: c.Config,
    distance: Distance | str | None,
    loss: step.GeneratorLoss | str | None,
    generator: Generator | None,
) -> c.Config:
    """The config with what was named, and the generator's settings, in place of its own."""
    if isinstance(loss, str):
        config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, name=loss))
    if isinstance(distance, str):
        chosen = dataclasses.replace(config.loss, distance=distance)
        config = dataclasses.replace(config, loss=chosen)
    if generator is not None:
        if not isinstance(generator, Generator):
            raise ConfigError(
                f"generator is {values.shown(generator)}, expected a OneStep or Chain: "
                "models/generator.py has them."
            )
        config = with_generator(config, generator)
    return config


def _at_most_float32(leaf: Any) -> Any:
    is_double = getattr(leaf, "dtype", None) == np.float64
    return np.asarray(leaf, np.float32) if is_double else leaf


def _condition(
    model: Model, labels: Sequence[int] | np.ndarray | None, prompts: Sequence[str] | None
) -> Condition:
    """What samples are conditioned on, in turn."""
    if prompts is not None:
        return _read(model, prompts, labels)
    if model.captions is None and model.config.network.condition.reads_prompts:
        raise ConfigError("this model draws prompts: prompts=[...], and load(..., encoder=FOLDER).")
    if labels is None:
        return model.asked(np.arange(max(model.classes, 1), dtype=np.int32))
    try:
        classes = np.atleast_1d(np.asarray(labels))
    except ValueError:  # lists of several lengths
        classes = np.zeros(0)
    is_right = classes.ndim == 1 and classes.size and classes.dtype.kind in "iu"
    if not (is_right and np.isin(classes, np.arange(model.classes)).all()):
        raise ConfigError(
            f"labels = {labels!r}: this model has {model.classes} classes, numbered from 0; "
            "expected a list of whole numbers, as labels=[0]."
        )
    return model.asked(classes.astype(np.int32))


def _read(model: Model, prompts: Sequence[str], labels: Any) -> Condition:
    """The features of prompts, or of one prompt."""
    prompts = [prompts] if isinstance(prompts, str) else prompts
    is_right = isinstance(prompts, Collection) and all(isinstance(text, str) for text in prompts)
    if not (is_right and len(prompts)):
        raise ConfigError(f"prompts = {prompts!r}: expected texts, as prompts=['a red cat'].")
    if labels is not None:
        raise ConfigError("labels and prompts were given; leave one of them out.")
    if model.read is None:
        raise ConfigError(
            "prompts are of a text-to-image model with its encoder: load(..., encoder=FOLDER)."
        )
    return model.read(list(prompts))
