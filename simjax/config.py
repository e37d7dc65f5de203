"""The schema of a run: every field, its default and its source, and the checks made at start.

A config file returns a `Config`; the command line assigns its fields
(`--config.generator.optim.lr=2e-5`) and refuses unknown ones. Defaults are SIM's published CIFAR-10
settings (arXiv:2410.16794, appendix B.2) where the paper has them. Only build.py and the programs
above it read a Config; everything below takes plain values.
"""

import dataclasses
import typing
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from simjax.errors import ConfigError

MODES = ("distill", "port")  # run.py has a function for each
AUGMENT_DIM = 9  # labels of EDM's augmentation pipe


@dataclass
class Data:
    """The real images: they train a teacher and judge samples; distillation never reads them."""

    source: str = ""  # none, digits, tfds:NAME, zip:PATH, idx:DIR (simjax/data)
    split: str = "train"


@dataclass
class SongUNet:
    """DDPM++; NCSN++ with embedding, noise_channels, encoder, filter_taps changed (EDM table 7)."""

    resolution: int = 32
    image_channels: int = 3
    label_dim: int = 0
    augment_dim: int = 9  # EDM's augmentation pipe
    channels: int = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)
    blocks: int = 4
    attention_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.13
    embedding: str = "positional"
    noise_channels: int = 1
    encoder: str = "standard"
    filter_taps: tuple[int, ...] = (1, 1)


@dataclass
class AdmUNet:
    """The U-Net of Dhariwal and Nichol; defaults are EDM's ImageNet 64 network (EDM table 7)."""

    resolution: int = 64
    image_channels: int = 3
    label_dim: int = 1000
    augment_dim: int = 0
    channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    dropout: float = 0.10


@dataclass
class DiT:
    """The transformer of DiT on latents; defaults are DiT-XL/2 for 256 pixels (DiT table 1)."""

    resolution: int = 32  # of latents: 1/8 of the images'
    image_channels: int = 4
    label_dim: int = 1000
    patch: int = 2
    width: int = 1152
    depth: int = 28
    heads: int = 16
    time_steps: int = 128  # of the embedding's frequencies; 127 where weights came from diffusers
    augment_dim: typing.ClassVar[int] = 0


@dataclass
class PixArt:
    """The transformer of PixArt-alpha on latents; defaults are PixArt-XL-2-512x512's."""

    resolution: int = 64  # of latents: 32, 64, 128 for images of 256, 512, 1024
    image_channels: int = 4
    patch: int = 2
    width: int = 1152
    depth: int = 28
    heads: int = 16
    caption_channels: int = 4096  # T5-XXL
    caption_length: int = 120  # of the learned embedding of no caption; 0: there is none
    interpolation: float = 1.0  # of positions; 2 for images of 1024
    size_conditioning: bool = False  # True for images of 1024
    label_dim: typing.ClassVar[int] = 0
    augment_dim: typing.ClassVar[int] = 0


@dataclass
class Own:
    """What is known of a network that Python code brings (simjax.from_function); in no file."""

    resolution: int
    image_channels: int
    label_dim: int
    augment_dim: typing.ClassVar[int] = 0


Network = SongUNet | AdmUNet | DiT | PixArt


@dataclass
class T5:
    """A T5 v1.1 encoder; defaults are XXL's, which PixArt-alpha reads."""

    vocabulary: int = 32128
    width: int = 4096
    depth: int = 24
    heads: int = 64
    head_width: int = 64
    hidden: int = 10240
    buckets: int = 32
    max_distance: int = 128


@dataclass
class Text:
    """What reads the prompts of text-to-image networks."""

    t5: T5 = field(default_factory=T5)  # comes with the encoder's folder
    length: int = 120  # tokens kept of a prompt; PixArt-alpha
    cache: str = ""  # of training prompts, made by simjax.encode_prompts
    # Without a cache: captions of labelled data, read by a random encoder of t5's sizes.
    words: tuple[str, ...] = ()  # a class each; of several for a class, separated by |
    templates: tuple[str, ...] = ()  # in which {} stands for a word
    held_out: tuple[str, ...] = ()  # that samples are drawn and measured for; never trained on


@dataclass
class Sigma:
    """The law that training draws noise levels from (diffusion.schedule.SIGMA_LAWS)."""

    law: str = "lognormal"  # or karras; vp and ve take no options
    mean: float = -1.2  # lognormal: of ln sigma
    std: float = 1.2
    low: float = 0.0  # lognormal: clipping range
    high: float = float("inf")
    t_max: float = 0.8  # karras: t ~ U(0, t_max), SiD
    sigma_min: float = 0.002  # karras: ends of the path, EDM table 1
    sigma_max: float = 80.0
    rho: float = 7.0


@dataclass
class Optim:
    """Adam; beta1 = 0 stores no first moment. The rate: linear warm-up, then a cosine."""

    lr: float = 1e-5
    beta1: float = 0.0
    beta2: float = 0.999
    eps: float = 1e-8
    warmup_steps: int = 0
    final_lr: float = 1.0  # last rate over lr; 1 keeps it constant


@dataclass
class Ema:
    """Moving average: beta = 0.5^(batch / min(half_life, rampup_ratio * images seen))."""

    half_life_kimg: float = 500.0
    rampup_ratio: float = 0.05  # 0 turns the ramp off


@dataclass
class Sampler:
    """The teacher's sampler: by default EDM's algorithm 2 on its ladder, churn 0: deterministic."""

    sigma_min: float = 0.002  # EDM table 1
    sigma_max: float = 80.0
    rho: float = 7.0
    churn: float = 0.0
    churn_low: float = 0.0  # range of sigma in which churn acts
    churn_high: float = float("inf")
    churn_inflation: float = 1.0
    solver: str = "heun"  # diffusion.sampler.SOLVERS; with ladder "ddpm_linear", euler is DDIM
    ladder: str = "karras"  # or "ddpm_linear": equal time steps of DiT's and PixArt's schedule


@dataclass
class Teacher:
    """The pretrained model: one that `source` names, or one trained first, on config.data."""

    source: str = ""  # a known name (porting/zoo.py), a URL, a file; it brings its network
    family: str = ""  # dit, where a file of the source is of DiT or SiT and does not tell which
    sha256: str = ""  # that the file must have; empty accepts, and records, what comes
    sampler: Sampler = field(default_factory=Sampler)
    dtype: str = "float32"  # of its parameters while it is distilled; or "bfloat16"
    guidance: float = 1.0  # classifier-free scale w, when it is distilled and sampled; 1: none
    # The rest is for training one here.
    precondition: str = "edm"  # diffusion.precondition.PRECONDITIONS
    sigma_data: float = 0.5  # EDM table 1
    steps: int = 0  # no default fits all data
    batch: int = 256
    sigma: Sigma = field(default_factory=Sigma)
    weight: str = "edm"
    augment: float = 0.0  # probability of each of EDM's augmentations
    drop_condition: float = 0.0  # probability; what guidance needs. DiT, PixArt-alpha: 0.1
    optim: Optim = field(default_factory=lambda: Optim(lr=1e-3, beta1=0.9))  # EDM, CIFAR-10
    ema: Ema = field(default_factory=Ema)


@dataclass
class Generator:
    """G(z) = D(sigma_init z; sigma_init), updated by the method's loss."""

    source: str = ""  # weights to start from, as teacher.source; empty: the teacher's
    family: str = ""  # as teacher.family
    sigma_init: float = 2.5
    sigma: Sigma = field(default_factory=lambda: Sigma(mean=-3.5, std=2.5))
    weight: str = "uniform"
    optim: Optim = field(default_factory=Optim)
    ema: Ema = field(default_factory=Ema)


@dataclass
class FakeScore:
    """The denoiser of the generator's samples, updated by denoising score matching."""

    sigma: Sigma = field(default_factory=Sigma)
    weight: str = "edm"
    scale: float = 1.0  # of the loss
    augment: float = 0.0  # probability of each of EDM's augmentations; SiD on CIFAR-10: 0.12
    guidance: float = 1.0  # scale in the generator's update; 1: none, as SIM. Others: 2406.01561
    drop_condition: float = 0.0  # probability while it learns; what its guidance needs
    optim: Optim = field(default_factory=Optim)


@dataclass
class Loss:
    """The generator's loss (train.step.LOSSES) and, for SIM, its distance (losses.distances)."""

    name: str = "sim"
    distance: str = "pseudo_huber"
    units: str = "denoiser"  # or "score": divide by sigma^2 first, SIM eq. 3.7
    scale: float = 1.0  # SiD's official code: 100
    alpha: float = 1.2  # sid
    c: float = 1e-3  # pseudo_huber; SIM authors, issue 5 of their repository
    delta: float = 1.0  # huber; our choice
    exponent: float = 1.0  # power, exponential; our choice
    rate: float = 0.01  # exponential; our choice, exp stays finite for 64 x 64 images


@dataclass
class Evaluation:
    """What is measured at the end of a run, and while it goes on."""

    reference: str = ""  # to compare with: data, statistics (.npz), a URL; empty: data.source
    limit: int = 0  # of real images compared with, the first; 0: all
    features: tuple[str, ...] = ("inception",)  # spaces, evaluation.features.EXTRACTORS
    metrics: tuple[str, ...] = ("frechet", "precision_recall", "class_agreement")
    samples: int = 50_000  # the field's convention
    teacher_steps: tuple[int, ...] = (18,)  # Heun steps (EDM, CIFAR-10); n cost 2 n - 1 evaluations
    batch: int = 100  # our choice
    every: int = 0  # steps between measurements of the generator while training; 0: none
    online_samples: int = 5000  # of these measurements; our choice
    best: str = ""  # metric, as "inception/fid", by which a best generator is kept


@dataclass
class Config:
    """One experiment."""

    mode: str = "distill"  # MODES
    seed: int = 0
    steps: int = 1000
    batch: int = 256
    accumulate: int = 1  # slices of a batch whose gradients are summed one after another
    share_samples: bool = False  # between both updates of a step: 10 F, not as published
    steps_per_call: int = 1  # whole steps scanned inside one compiled call
    compute_dtype: str = "float32"  # inside the networks; or "bfloat16"
    remat: str = "none"  # what backward passes recompute, of networks.layers.REMAT
    scan_blocks: bool = True  # transformers compile one block, not all; the same numbers
    fsdp: int = 8  # devices that states are split over, at most; our choice: those of one host
    data: Data = field(default_factory=Data)
    network: Network | None = None  # None: the one that comes with teacher.source
    dropout: float | None = None  # of whichever is being updated; None: the network's own
    text: Text = field(default_factory=Text)
    autoencoder: str = ""  # folder of diffusers' AutoencoderKL, which decodes latents for pictures
    teacher: Teacher = field(default_factory=Teacher)
    generator: Generator = field(default_factory=Generator)
    fake_score: FakeScore = field(default_factory=FakeScore)
    loss: Loss = field(default_factory=Loss)
    evaluation: Evaluation = field(default_factory=Evaluation)
    grid: int = 10  # images a side of the sample pictures
    log_every: int = 100
    sample_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    checkpoint_limit: int = 900  # seconds that a save of several processes may take; our choice


def validate(config: Config, choices: dict[str, Collection[str]], devices: int) -> None:
    """Checks across fields; `choices` maps a dotted field to the names it may hold.

    Raises:
      ConfigError: with what came, what was expected and what to do.
    """
    require_known("mode", config.mode, MODES)
    for path, known in choices.items():
        require_known(path, get_field(config, path), known)
    for path in ("steps", "batch", "accumulate", "steps_per_call", "log_every", "sample_every"):
        _require_positive(config, path)
    for path in ("checkpoint_every", "keep_checkpoints", "checkpoint_limit", "fsdp"):
        _require_positive(config, path)
    for path in (
        "teacher.batch",
        "generator.optim.lr",
        "fake_score.optim.lr",
        "generator.sigma_init",
        "evaluation.samples",
    ):
        _require_positive(config, path)
    if config.batch % config.accumulate:
        raise ConfigError(
            f"batch = {config.batch} is not divisible by accumulate = {config.accumulate}."
        )
    if config.share_samples and config.accumulate > 1:
        raise ConfigError(
            f"share_samples keeps the samples of a whole batch, accumulate = {config.accumulate} "
            "makes them a slice at a time: set one of them only."
        )
    for path, batch in [
        ("batch", config.batch // config.accumulate),
        ("teacher.batch", config.teacher.batch if config.teacher.steps else 0),
    ]:
        if batch % devices:
            raise ConfigError(
                f"{path}: {batch} examples at a time cannot be split over {devices} devices; "
                f"use a multiple of {devices}, e.g. --config.{path}="
                f"{-(-batch // devices) * devices * (config.accumulate if path == 'batch' else 1)}."
            )
    seen = ("log_every", "sample_every", "checkpoint_every", "evaluation.every")
    for path in ("steps", "teacher.steps", *seen):
        if get_field(config, path) % config.steps_per_call:
            raise ConfigError(
                f"{path} = {get_field(config, path)} is not a multiple of steps_per_call = "
                f"{config.steps_per_call}: steps are only seen at the ends of compiled calls. "
                "Change it, or use --config.steps_per_call=1."
            )


def require_teacher(config: Config) -> None:
    """Refuses a distillation that neither names a teacher nor can train one.

    Raises:
      ConfigError: with the fields that would do.
    """
    source, steps, network = config.teacher.source, config.teacher.steps, config.network
    for name, part in (("teacher", config.teacher), ("generator", config.generator)):
        if part.family and not part.source:
            raise ConfigError(
                f"{name}.family = {part.family!r} is of a file that {name}.source names; set "
                f"--config.{name}.source=FILE, or leave it out."
            )
    if source and (steps or network is not None):
        raise ConfigError(
            f"teacher.source = {source!r} brings its network and needs no training; leave out "
            "network and teacher.steps."
        )
    if not source and not (steps > 0 and network is not None and config.data.source):
        raise ConfigError(
            "there is no teacher: name one, e.g. --config.teacher.source="
            "edm-cifar10-32x32-cond-vp, or train one here, which needs teacher.steps (now "
            f"{steps}), a network and data.source."
        )


def require_source(config: Config, path: str) -> None:
    """Refuses a mode without the weights that it is about.

    Raises:
      ConfigError: naming the field.
    """
    if not get_field(config, path):
        raise ConfigError(
            f"mode {config.mode!r} needs {path}: --config.{path}= a known name such as "
            "edm-cifar10-32x32-cond-vp, a URL or a file."
        )


def complete(config: Config, network: Network, precondition: str, sigma_data: float) -> Config:
    """The config of a run whose teacher is known: its network, with the run's own dropout.

    Raises:
      ConfigError: augmentation, dropout or guidance is asked of a network without it.
    """
    if config.dropout is not None:
        if not hasattr(network, "dropout"):
            raise ConfigError(
                f"dropout = {config.dropout}, but {type(network).__name__} has none; leave it out."
            )
        network = dataclasses.replace(network, dropout=config.dropout)
    require_null_condition(config, network)
    for path in ("teacher.augment", "fake_score.augment"):
        if get_field(config, path) and network.augment_dim != AUGMENT_DIM:
            raise ConfigError(
                f"{path} = {get_field(config, path)}, but the network has augment_dim = "
                f"{network.augment_dim}, not {AUGMENT_DIM}; set --config.{path}=0."
            )
    teacher = dataclasses.replace(config.teacher, precondition=precondition, sigma_data=sigma_data)
    return dataclasses.replace(config, network=network, teacher=teacher)


def require_null_condition(config: Config, network: Network) -> None:
    """Refuses guidance of a network that has nothing to put in place of a condition.

    Raises:
      ConfigError: with what would do.
    """
    lacks = isinstance(network, PixArt) and not network.caption_length
    for path in ("teacher.guidance", "fake_score.guidance"):
        if lacks and get_field(config, path) != 1:
            raise ConfigError(
                f"{path} = {get_field(config, path)}, but diffusers' folder of PixArt lacks the "
                "learned embedding of no caption; use the original .pth, or set "
                f"--config.{path}=1."
            )


def pick(method: str, **known: Callable[[], Config]) -> Config:
    """The variant of an experiment that --config=FILE:METHOD asks for.

    Raises:
      ConfigError: the file has no such variant.
    """
    require_known("method (after the colon of --config)", method, known)
    return known[method]()


def describe(network: Network) -> dict[str, Any]:
    """Plain values from which `network_from` makes the network again, through JSON too."""
    return {"class": type(network).__name__} | dataclasses.asdict(network)


def network_from(description: dict[str, Any]) -> Network:
    """The inverse of `describe`."""
    kinds = {kind.__name__: kind for kind in typing.get_args(Network)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in description.items()}
    return kinds[values.pop("class")](**values)


def get_field(config: Config, path: str) -> Any:
    """The value at a dotted path, e.g. "loss.name"."""
    for name in path.split("."):
        config = getattr(config, name)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain values, as config.json holds them (tuples become lists there)."""
    network = None if config.network is None else describe(config.network)
    return dataclasses.asdict(config) | {"network": network}


def from_dict(values: dict[str, Any], cls: type = Config) -> Any:
    """The inverse of `to_dict`, through JSON too.

    Raises:
      ConfigError: fields that this version does not have.
    """
    kinds = typing.get_type_hints(cls)
    if unknown := sorted(values.keys() - kinds.keys()):
        raise ConfigError(f"{cls.__name__} has no field {', '.join(unknown)}: of another version?")
    made = {}
    for name, value in values.items():
        if name == "network" and value is not None:
            value = network_from(value)
        elif dataclasses.is_dataclass(kinds[name]):
            value = from_dict(value, kinds[name])
        made[name] = tuple(value) if isinstance(value, list) else value
    return cls(**made)


def differences(saved: Any, current: Any) -> list[str]:
    """Lines "field: saved -> current" for every leaf that differs between two nested dicts."""
    return [str(change) for change in changes(saved, current)]


class Change(typing.NamedTuple):
    """A field, by its dotted name, and its two values."""

    field: str
    saved: Any
    current: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.saved!r} -> {self.current!r}"


def changes(saved: Any, current: Any, path: str = "") -> list[Change]:
    """Every leaf that differs between two nested dicts."""
    if not (isinstance(saved, dict) and isinstance(current, dict)):
        same = saved == current or (saved != saved and current != current)
        return [] if same else [Change(path, saved, current)]
    missing = "(absent)"
    return [
        change
        for name in sorted({*saved, *current})
        for change in changes(
            saved.get(name, missing), current.get(name, missing), f"{path}.{name}".lstrip(".")
        )
    ]


def known_fields(cls: type = Config, path: str = "") -> list[str]:
    """Every dotted field name of the schema, for messages about misspelled ones."""
    names = []
    for name, kind in typing.get_type_hints(cls).items():
        dotted = f"{path}.{name}".lstrip(".")
        inner = [k for k in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(k)]
        names += [n for k in inner for n in known_fields(k, dotted)] or [dotted]
    return list(dict.fromkeys(names))


def require_known(path: str, value: str, known: Collection[str]) -> None:
    """Refuses a name that is not one of `known`.

    Raises:
      ConfigError: listing them.
    """
    if value not in known:
        raise ConfigError(f"{path} = {value!r} is not known; known: {', '.join(sorted(known))}.")


def _require_positive(config: Config, path: str) -> None:
    if not get_field(config, path) > 0:
        raise ConfigError(f"{path} = {get_field(config, path)} must be positive.")
