"""What a notebook cell calls: load, sample, look, distil. Exported by simjax/__init__.py.

    import simjax

    teacher = simjax.load("runs/digits", network="teacher")  # or a known name, a URL, a file
    distillation = simjax.Distillation(teacher)
    distillation.train(200)
    simjax.show(simjax.draw(distillation.generator, 20))

Everything stays in memory; `simjax.distill` is the command's run, which resumes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image
from tqdm.auto import tqdm

from simjax import build, captions, formats, report, run, sharding, storage, teacher
from simjax import config as c
from simjax.losses.distances import Distance
from simjax.monitor import grid, to_uint8
from simjax.teacher import Model, require_fit
from simjax.train import health, step
from simjax.typing import Condition, Denoise, Float, Int, Params, Scalar

FETCH = 20  # steps between looks at the metrics; our choice


def load(
    source: str,
    *,
    network: str = "generator",
    family: str = "",
    config: c.Config | None = None,
    encoder: str = "",
    autoencoder: str = "",
) -> Model:
    """A run's generator or teacher; an export; published weights: a known name, a URL, a file.

    Args:
      source: as --source of simjax.sample, or a folder of simjax.export --format=safetensors.
      network: of a run directory, "generator" (its EMA) or "teacher".
      family: "dit", for a .pt file that may be DiT's or SiT's and does not tell which.
      config: of published weights, the settings that they are distilled and sampled with; a run
        and an export have their own.
      encoder: folder of the T5 encoder that reads prompts, with its tokenizer; a run that wrote
        its captions has its own.
      autoencoder: folder of diffusers' AutoencoderKL; without one, latents are drawn as they are.

    Raises:
      ConfigError: it cannot be had.
    """
    c.require_known("network", network, ("generator", "teacher"))
    directory = storage.absolute(source)
    found = teacher.config_of_run(directory)
    if found is None:
        config = config or c.Config()
        known = dataclasses.replace(config.teacher, family=family or config.teacher.family)
        config = dataclasses.replace(config, teacher=known)
        model = _without_a_run(source, directory, config, autoencoder)
        return teacher.reading(model, teacher.reader_from(model, encoder)) if encoder else model
    teacher.refuse_family(family, "a run")
    found = dataclasses.replace(found, autoencoder=autoencoder or found.autoencoder)
    model = teacher.load(found, directory / "teacher")
    model = teacher.furnished(model, captions.prepare(model.config, directory))
    if found.text.templates:
        model = teacher.reading(model, captions.reader(found.text, directory))
    elif encoder:
        model = teacher.reading(model, teacher.reader_from(model, encoder))
    if network == "teacher":
        return model
    generator, _ = teacher.newest_generator(model, directory)
    return dataclasses.replace(model, params=generator)


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
      params: any tree of float arrays.
      shape: (height, width, channels) of a sample; squares only. Points of the plane: (1, 1, 2).
      classes: 0 if there is no condition.
      config: settings; by default simjax.config's.

    Raises:
      ConfigError: what it returns has another shape than what it is given.
    """
    height, width, channels = shape
    if height != width:
        raise c.ConfigError(f"shape = {shape}: samples are squares, of equal height and width.")
    network = c.Own(resolution=height, image_channels=channels, label_dim=classes)
    given = config or c.Config()
    config = c.complete(given, network, given.teacher.precondition, given.teacher.sigma_data)

    def denoise_plainly(params, xt, sigma, cond, *, augment_labels=None, dropout_keys=None):
        return denoise(params, xt, sigma, cond)

    images, sigma, cond = (
        jax.ShapeDtypeStruct(size, np.float32) for size in ((2, *shape), (2,), (2, classes))
    )
    out = jax.eval_shape(denoise, params, images, sigma, cond)
    found = getattr(out, "shape", type(out))
    if found != images.shape:
        raise c.ConfigError(f"denoise returns {found} for xt of {images.shape}: not the same.")
    mesh = build.mesh(config)
    provenance = {"source": f"the function {getattr(denoise, '__name__', denoise)}"}
    return Model(config, mesh, denoise_plainly, sharding.place(params, mesh), {}, provenance)


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

    Args:
      labels: classes, in turn; by default all of them.
      prompts: in turn, of a text-to-image model.
      steps: of the teacher's sampler, with the guidance of model.config.teacher; 0: one call at
        model.config.generator.sigma_init.

    Raises:
      ConfigError: the model has no such condition, or the samples are not finite.
    """
    cond = _condition(model, labels, prompts)
    if steps:
        contestant = report.many_steps(model, steps)
    else:
        (contestant,) = report.one_step(model, {"generator": model.params})
    drawing = report.drawing_of(model, cond, count, seed)
    return np.concatenate(list(drawing.images(contestant.sampler, contestant.params)))


def show(images: Float[np.ndarray, "n h w c"], *, columns: int = 0) -> Image.Image:
    """A grid of images in [-1, 1], which a notebook draws; `columns`: by default about square."""
    picture = grid(to_uint8(np.asarray(images)), columns or -int(-(len(images) ** 0.5) // 1))
    return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)


class Distillation:
    """Distils a teacher in memory, as many steps at a time as a cell asks for.

    Args:
      teacher: from `load` or `from_function`.
      config: settings; by default the teacher's. `config.steps` is what learning rates decay over.
      distance: d of SIM, one example's y (h, w, c) to a scalar, instead of the config's.
      loss: (x0, d_teacher, d_fake, sigma) -> loss of each example, instead of the config's; its
        gradient is taken with respect to the generator.

    Attributes:
      state: parameters and optimizer states (train/state.py).
      metrics: of every step so far, as metrics.jsonl has them.
    """

    def __init__(
        self,
        teacher: Model,
        config: c.Config | None = None,
        *,
        distance: Distance | None = None,
        loss: step.GeneratorLoss | None = None,
    ):
        given = config or teacher.config
        made = teacher.config.teacher
        completed = c.complete(given, teacher.config.network, made.precondition, made.sigma_data)
        self._model = dataclasses.replace(
            teacher, config=dataclasses.replace(completed, steps_per_call=1)
        )
        build.check(self._model.config, jax.device_count())
        require_fit(self._model.config.network, teacher.captions)
        self._fns = build.step_fns(self._model.config, teacher.denoise, teacher.mesh)
        if distance is not None:
            matching = build.generator_loss(self._model.config, distance)
            self._fns = dataclasses.replace(self._fns, distance=distance, loss=matching)
        if loss is not None:
            self._fns = dataclasses.replace(self._fns, loss=loss)
        training = build.distillation(self._model.config, teacher.denoise, teacher.mesh, self._fns)
        self._call = training.call
        self._key = build.key_on(self._model.config, "distillation", teacher.mesh)
        self._constants_at = run.constants_at(self._model)
        self.state = training.init(teacher.params, teacher.params)
        self.metrics: list[dict[str, float]] = []

    def train(self, steps: int) -> None:
        """Goes on for so many steps; the bar shows both losses."""
        begun, late = int(self.state.step), []
        with tqdm(range(begun, begun + steps), unit="step") as bar:
            for number in bar:
                self.state, found = self._call(self.state, self._constants_at(number), self._key)
                late.append(found)  # to look at every step's would stop the device
                if len(late) == FETCH or number == begun + steps - 1:
                    self.metrics += map(health.summarize, jax.device_get(late))
                    late = []
                    bar.set_postfix({k: v for k, v in self.metrics[-1].items() if "/loss" in k})

    @property
    def generator(self) -> Model:
        """The moving average of the generator, as it is now."""
        return self._with(self.state.generator_ema)

    @property
    def fake_score(self) -> Model:
        """The denoiser of the generator's samples, as it is now."""
        return self._with(self.state.fake_score)

    def loss_and_grad(self, seed: int = 0) -> tuple[Scalar, Params]:
        """The generator's loss on one batch and its gradient, without a step."""

        def loss(generator: Params, key: Any) -> tuple[Scalar, Any]:
            constants = self._constants_at(int(self.state.step))
            _, draws = step.draw(self.state, constants, key, fns=self._fns)
            args = (generator, constants.teacher, self.state.fake_score, draws)
            return step.generator_loss(*args, fns=self._fns)

        (value, _), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
            self.state.generator, jax.random.key(seed)
        )
        return value, grads

    def _with(self, params: Params) -> Model:
        """A model of its own: the state is donated to the next step."""
        return dataclasses.replace(self._model, params=jax.tree.map(jax.numpy.copy, params))


def _without_a_run(source: str, directory: epath.Path, config: c.Config, autoencoder: str) -> Model:
    """Of an export or of published weights; without an autoencoder samples may be latents."""
    if formats.is_export(directory):
        teacher.refuse_family(config.teacher.family, "an export")
        model = teacher.model_of(*formats.read(directory), {"source": source})
    else:
        model = teacher.ported(config, source, say=print)
        prompts = captions.prepare(config, directory) if config.text.cache else None
        model = dataclasses.replace(model, captions=prompts)
    if not autoencoder:
        return model
    completed = dataclasses.replace(model.config, autoencoder=autoencoder)
    return teacher.decoded(dataclasses.replace(model, config=completed))


def _condition(
    model: Model, labels: Sequence[int] | np.ndarray | None, prompts: Sequence[str] | None
) -> Condition:
    """What samples are asked for, in turn."""
    if prompts is not None:
        if model.read is None:
            raise c.ConfigError(
                "prompts are of a text-to-image model with its encoder: load(..., encoder=FOLDER)."
            )
        return model.read(prompts)
    if model.captions is None and isinstance(model.config.network, c.PixArt):
        raise c.ConfigError(
            "this model draws prompts: prompts=[...], and load(..., encoder=FOLDER)."
        )
    classes = np.arange(max(model.classes, 1)) if labels is None else np.atleast_1d(labels)
    if labels is not None and not (
        len(classes) and np.isin(classes, np.arange(model.classes)).all()
    ):
        raise c.ConfigError(
            f"labels = {labels}: this model has {model.classes} classes, numbered from 0."
        )
    return model.asked(classes.astype(np.int32))
