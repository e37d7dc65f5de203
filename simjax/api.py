"""The notebook API: load, from_function, draw, show, Distillation. Exported by simjax.

    import simjax

    teacher = simjax.load("runs/digits", network="teacher")  # or a known name, a URL, a file
    distillation = simjax.Distillation(teacher)
    distillation.train(200)
    simjax.show(simjax.draw(distillation.generator, 20))

Everything stays in memory. `simjax.distill` writes a run directory and resumes from it.
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
FETCH = 20  # steps between device-to-host copies of the metrics; our choice


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
    """Loads a generator or teacher: run, export or published weights.

        generator = simjax.load("runs/digits")
        teacher = simjax.load("runs/digits", network="teacher")
        teacher = simjax.load("edm-cifar10-32x32-cond-vp")  # downloads about 220 MB, once
        teacher = simjax.load("DiT-XL-2-256x256.pt", family="dit", autoencoder="sd-vae-ft-ema")

    Args:
      source: a run directory, a folder written by `simjax export`, or published weights: a known
        name (simjax/porting/zoo.py), a URL, a file or a diffusers folder.
      network: which network of a run to load: "generator" (EMA at the newest checkpoint; the
        default), "best" (the one that config.evaluation.best selected) or "teacher".
      family: "dit", "sit" or "sit_gvp", for a .pt file: DiT and SiT have the same tensors.
      config: settings for sampling and distilling published weights; a run and an export bring
        their own.
      encoder: folder of a T5 encoder with its tokenizer, for prompts; a run whose captions come
        from templates brings its own.
      autoencoder: folder of a diffusers AutoencoderKL, which decodes latents to images; without
        it, latents are returned.

    Returns:
      A Model, for `draw`, `probe` and `Distillation`.

    Raises:
      ConfigError: the source cannot be loaded, or an argument has no effect on this source.
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
        raise ConfigError(
            f"{source} is not a run directory and has only one network; leave network out."
        )
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
    """Makes a teacher from a JAX denoiser function and its parameters.

    Args:
      denoise: (params, xt, sigma, cond) -> E[x0 | xt], of xt's shape, where xt = x0 + sigma eps:
        xt (b, h, w, c), sigma (b,) the noise standard deviation in data units, cond (b, classes)
        one-hot. It must be differentiable in params and xt. Fake score and generator are the same
        function with other parameters.
      params: pytree of float arrays; float64 becomes float32.
      shape: (height, width, channels) of a sample, height = width; (1, 1, 2) for 2-D points.
      classes: number of classes; 0 for an unconditional teacher.
      config: settings of sampling and distillation; default: simjax.Config().

    Returns:
      A Model, for `draw`, `probe` and `Distillation`.

    Raises:
      ConfigError: an argument is out of range, or denoise returns another shape than xt's.

    Example, the exact denoiser of Gaussian data N(0, scale^2):

    >>> import jax.numpy as jnp
    >>> import simjax
    >>> def denoise(params, xt, sigma, cond):
    ...     variance = params["scale"] ** 2
    ...     return variance / (variance + sigma[:, None, None, None] ** 2) * xt
    >>> teacher = simjax.from_function(denoise, {"scale": jnp.float32(0.5)}, shape=(8, 8, 1))
    >>> round(float(simjax.draw(teacher, 64, steps=50).std()), 1)
    0.5
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
        raise ConfigError(f"shape = {shape}: height and width must be equal.")
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
        raise ConfigError(f"denoise returns {found}, expected the shape of xt, {images.shape}.")
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
    """Draws samples from a generator or a teacher.

    Sample i of a seed is the same for every count.

    Args:
      model: from `load`, `from_function` or `Distillation`.
      count: number of samples.
      labels: class indices, cycled over the samples; default: all classes.
      prompts: a list of strings, cycled over the samples, or one string; text-to-image models
        only.
      seed: random seed, from 0 to 2**32 - 1.
      steps: generator: network calls per sample (NFE), default the number it was trained for;
        another number warns with the noise levels it uses. Teacher: steps of its sampler, with
        model.config.teacher.guidance (Heun: NFE = 2 steps - 1); 0 samples as the generator that
        model.config.generator describes, by default one call at sigma_init.

    Returns:
      Samples in data units, images in [-1, 1]; latents where the model has no autoencoder.

    Raises:
      ConfigError: an argument is out of range, the model does not have this kind of condition, or
        samples are not finite.

    Example, a class-conditional function as teacher:

    >>> import jax.numpy as jnp
    >>> import simjax
    >>> def denoise(params, xt, sigma, cond):  # each class is one grey level
    ...     return jnp.broadcast_to((cond @ params)[:, None, None, None], xt.shape)
    >>> levels = jnp.array([-1.0, 0.0, 1.0])
    >>> teacher = simjax.from_function(denoise, levels, shape=(8, 8, 1), classes=3)
    >>> images = simjax.draw(teacher, 4, labels=[0, 2])
    >>> images.shape, images[:, 0, 0, 0].tolist()
    ((4, 8, 8, 1), [-1.0, 1.0, -1.0, 1.0])
    """
    values.instance("model", model, Model, LOAD)
    count, steps = values.whole_number("count", count, 1), values.whole_number("steps", steps, 0)
    seed = values.seed(seed)
    cond = _condition(model, labels, prompts)
    if steps and model.is_generator:
        config, note = with_calls(model.config, steps)
        if note:
            warnings.warn(note, stacklevel=3)
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
    """Arranges images in a grid, as a PIL image that notebooks display.

    Args:
      images: floats in [-1, 1] or uint8 in 0..255, with 1 or 3 channels; a batch (n, h, w, c) or
        one image (h, w, c) or (h, w). Small images are enlarged by whole factors.
      columns: images per row; 0 makes the grid about square.

    Returns:
      A PIL.Image.Image; `.save("grid.png")` writes it.

    Raises:
      ConfigError: there are no images, another shape or dtype, or values that are not finite.

    >>> import numpy as np
    >>> import simjax
    >>> simjax.show(np.zeros((6, 8, 8, 1)), columns=3).size  # 8 x 8 pixels, enlarged and framed
    (216, 144)
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
    """Distils a teacher in memory, any number of steps at a time.

    Args:
      teacher: from `load` or `from_function`.
      config: settings; default: the teacher's. Learning rates decay over `config.steps`.
      distance: replaces config.loss.distance: the name of a distance, or a function d from one
        example's y = D_fake - D_teacher (h, w, c) to a scalar.
      loss: replaces config.loss: the name of a loss, or a function (x0, d_teacher, d_fake, sigma)
        -> per-example loss (b,), differentiated with respect to the generator. Images have shape
        (b, h, w, c) in data units, sigma has (b,).
      generator: replaces config.generator: a OneStep or Chain of simjax.models.generator.
      updates: function from the list of a step's updates to another such list
        (simjax/train/update.py), e.g. `lambda updates: [updates[0], *updates]` for two fake-score
        updates per generator update.

    Attributes:
      state: parameters and optimizer states (simjax/train/state.py).
      generator, fake_score: the current networks, for `draw`.
      metrics: one dict per step so far.

    Raises:
      ConfigError: an argument or a setting is wrong; the message has the remedy.

    Example, a teacher of 2-D Gaussian data N(0, scale^2):

        def denoise(params, xt, sigma, cond):
            variance = params["scale"] ** 2
            return variance / (variance + sigma[:, None, None, None] ** 2) * xt

        teacher = simjax.from_function(denoise, {"scale": jnp.float32(2)}, shape=(1, 1, 2))
        distillation = simjax.Distillation(teacher, simjax.Config(batch=64), distance="huber")
        distillation.train(300)
        points = simjax.draw(distillation.generator, 1000)  # (1000, 1, 1, 2)
        distillation.metrics[-1]["fake_score/loss"]
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
                    f"updates have roles {', '.join(roles) or 'none'}: expected fake_score and "
                    "generator, e.g. lambda updates: [updates[0], *updates]."
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
        self._late: list[Metrics] = []  # on the device: reading each step's would block dispatch

    @settings.independent
    def train(self, steps: int) -> None:
        """Trains for this many more steps; the progress bar shows both losses."""
        steps = values.whole_number("steps", steps, 0)
        begun = int(self.state.step)
        with tqdm(range(begun, begun + steps), unit="step") as bar:
            for number in bar:
                constants = self._constants_at(number)
                with processes.interrupted_later():  # the call donates the old state
                    self.state, found = self._call(self.state, constants, self._key)
                    self._late.append(found)
                if len(self._late) == FETCH or number == begun + steps - 1:
                    last = self.metrics[-1]
                    bar.set_postfix({k: v for k, v in last.items() if "/loss" in k})

    @property
    def metrics(self) -> list[dict[str, float]]:
        """Metrics of every step so far, keyed as in metrics.jsonl."""
        with processes.interrupted_later():
            found = [health.summarize(each) for each in jax.device_get(self._late)]
            self._metrics += found
            self._late = []
        return self._metrics

    @property
    def generator(self) -> Model:
        """EMA of the generator at the current step."""
        return dataclasses.replace(self._with(self.state.ema), is_generator=True)

    @property
    def fake_score(self) -> Model:
        """Fake score (denoiser of the generator's samples) at the current step."""
        return self._with(self.state.fake_score)

    @settings.independent
    def loss_and_grad(self, seed: int = 0) -> tuple[Scalar, Params]:
        """Generator loss on one batch and its gradient; updates nothing."""
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
        """Model with copied parameters: the next step donates the state."""
        return dataclasses.replace(self._model, params=jax.tree.map(jax.numpy.copy, params))


def _chosen(
    config: c.Config,
    distance: Distance | str | None,
    loss: step.GeneratorLoss | str | None,
    generator: Generator | None,
) -> c.Config:
    """The config with the chosen loss, distance and generator."""
    if isinstance(loss, str):
        config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, name=loss))
    if isinstance(distance, str):
        chosen = dataclasses.replace(config.loss, distance=distance)
        config = dataclasses.replace(config, loss=chosen)
    if generator is not None:
        if not isinstance(generator, Generator):
            raise ConfigError(
                f"generator is {values.shown(generator)}, expected a OneStep or Chain of "
                "simjax.models.generator."
            )
        config = with_generator(config, generator)
    return config


def _at_most_float32(leaf: Any) -> Any:
    is_double = getattr(leaf, "dtype", None) == np.float64
    return np.asarray(leaf, np.float32) if is_double else leaf


def _condition(
    model: Model, labels: Sequence[int] | np.ndarray | None, prompts: Sequence[str] | None
) -> Condition:
    """Conditions that samples cycle over, from labels or prompts."""
    if prompts is not None:
        return _read(model, prompts, labels)
    if model.captions is None and model.config.network.condition.reads_prompts:
        raise ConfigError(
            "this model is conditioned on prompts: load it with encoder=FOLDER and pass "
            "prompts=[...]."
        )
    if labels is None:
        return model.conditions(np.arange(max(model.classes, 1), dtype=np.int32))
    try:
        classes = np.atleast_1d(np.asarray(labels))
    except ValueError:  # nested lists of different lengths
        classes = np.zeros(0)
    is_right = classes.ndim == 1 and classes.size and classes.dtype.kind in "iu"
    if not (is_right and np.isin(classes, np.arange(model.classes)).all()):
        raise ConfigError(
            f"labels = {labels!r}: this model has {model.classes} classes, numbered from 0; "
            "expected a list of integers, e.g. labels=[0]."
        )
    return model.conditions(classes.astype(np.int32))


def _read(model: Model, prompts: Sequence[str], labels: Any) -> Condition:
    """Text-encoder features of the prompts (or of one prompt)."""
    prompts = [prompts] if isinstance(prompts, str) else prompts
    is_right = isinstance(prompts, Collection) and all(isinstance(text, str) for text in prompts)
    if not (is_right and len(prompts)):
        raise ConfigError(
            f"prompts = {prompts!r}: expected a list of strings, e.g. prompts=['a red cat']."
        )
    if labels is not None:
        raise ConfigError("labels and prompts were given; leave one of them out.")
    if model.read is None:
        raise ConfigError(
            "prompts need a text-to-image model with its text encoder: load(..., encoder=FOLDER)."
        )
    return model.read(list(prompts))
