"""The schema of a run: every field, its default and its source.

A config file returns a `Config`; the command line assigns its fields
(`--config.generator.optim.lr=2e-5`) and refuses unknown ones. Defaults are SIM's published CIFAR-10
settings (arXiv:2410.16794, appendix B.2) where the paper has them. Only models/ and runs/, and what
stands above them, read a Config; everything below takes plain values.
"""

import typing
from dataclasses import dataclass, field

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


class Description(typing.NamedTuple):
    """What a denoiser is: D of a family (diffusion/precondition.py) around a network."""

    network: Network
    precondition: str
    sigma_data: float


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
    cache: str = ""  # of training prompts, made by simjax encode-prompts
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
    ladder: str = "karras"  # schedule.LADDERS; "ddpm_linear": time steps of DiT and PixArt-alpha


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
    """The generator's loss (losses.registry) and, for SIM, its distance (losses.distances)."""

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

    seed: int = 0
    steps: int = 1000
    batch: int = 256
    accumulate: int = 1  # slices of a batch whose gradients are summed one after another
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
