"""Config schema: every field with its default and source.

A config file returns a `Config`; flags assign its fields (`--config.generator.optim.lr=2e-5`), and
unknown fields are errors. Defaults are SIM's published CIFAR-10 settings (arXiv:2410.16794,
appendix B.2) where the paper states them. Options of losses, distances, sigma laws and networks are
declared in their own files. Only models/, runs/ and the layers above them read a Config; lower
layers take plain values.
"""

from dataclasses import dataclass, field

from simjax.config.options import extend
from simjax.diffusion.schedule import SIGMA_LAWS
from simjax.losses.distances import DISTANCES
from simjax.losses.registry import LOSSES
from simjax.networks.network import Network
from simjax.networks.t5 import T5

AUGMENT_DIM = 9  # number of EDM's augmentation labels


@dataclass
class Data:
    """Real images for teacher training and evaluation."""

    source: str = ""  # empty (none), digits, tfds:NAME, zip:PATH, idx:DIR (simjax/data)
    split: str = "train"


@dataclass
class Real:
    """Real images for distillation; only RealUID and SiDA need them."""

    source: str = ""  # as data.source
    split: str = "train"


@dataclass
class Text:
    """Text encoder and prompts of text-to-image networks."""

    t5: T5 = field(default_factory=T5)  # encoder sizes; read from the encoder's folder
    length: int = 120  # maximum tokens per prompt; PixArt-alpha
    cache: str = ""  # embeddings of training prompts, written by simjax encode-prompts
    # Without a cache: captions of labelled data, encoded by a random T5 with the sizes in t5.
    words: tuple[str, ...] = ()  # one entry per class; synonyms are separated by |
    templates: tuple[str, ...] = ()  # captions with {} in place of the word
    held_out: tuple[str, ...] = ()  # templates for sampling and evaluation, excluded from training


@dataclass
class Sigma:
    """Training distribution of sigma, and its options."""

    law: str = "lognormal"  # diffusion.schedule.SIGMA_LAWS


extend(Sigma, *SIGMA_LAWS.values())


@dataclass
class Optim:
    """Adam with linear warm-up and cosine decay.

    beta1 = 0 stores no first moment.
    """

    lr: float = 1e-5
    beta1: float = 0.0
    beta2: float = 0.999
    eps: float = 1e-8
    warmup_steps: int = 0
    final_lr: float = 1.0  # final learning rate / lr; 1: constant
    clip: float = 0.0  # element-wise gradient clipping; SiDA's fake score: 1; 0: none


@dataclass
class Ema:
    """EMA of parameters: beta = 0.5^(batch / min(half_life, rampup_ratio * images seen))."""

    half_life_kimg: float = 500.0
    rampup_ratio: float = 0.05  # 0: no ramp-up


@dataclass
class Sampler:
    """The teacher's sampler; defaults are EDM's algorithm 2 without churn."""

    sigma_min: float = 0.002  # EDM table 1
    sigma_max: float = 80.0
    rho: float = 7.0
    shift: float = 1.0  # time shift of flow ladders; SD3, SANA: 3
    u_max: float = 0.999  # first time of flow ladders
    u_last: float = 0.04  # time before the last step of "flow_sde"; SiT
    churn: float = 0.0  # S_churn; 0: deterministic
    churn_low: float = 0.0  # S_min and S_max: range of sigma with churn
    churn_high: float = float("inf")
    churn_inflation: float = 1.0  # S_noise
    # Empty: the defaults of the teacher's family.
    solver: str = ""  # diffusion.sampler.SOLVERS; with ladder "ddpm_linear", euler is DDIM
    ladder: str = ""  # diffusion.schedule.LADDERS


@dataclass
class Teacher:
    """The pretrained model, loaded from `source` or trained first on config.data."""

    source: str = ""  # a known name (porting/zoo.py), a URL or a file; includes the network
    family: str = ""  # dit, sit or sit_gvp, if the file can be either DiT or SiT
    sha256: str = ""  # expected hash of the file; empty: any, recorded in the run
    sampler: Sampler = field(default_factory=Sampler)
    dtype: str = "float32"  # of the frozen parameters during distillation; or "bfloat16"
    guidance: float = 1.0  # classifier-free guidance scale w, distillation and sampling; 1: none
    guided_channels: int | None = None  # the first n; 0: all; None: 3 for DiT and SiT, else all
    # The remaining fields apply only if the teacher is trained here.
    precondition: str = "edm"  # diffusion.families.FAMILIES
    sigma_data: float = 0.5  # EDM table 1
    steps: int = 0  # no default fits all data
    batch: int = 256
    # Empty sigma.law and weight: the family's defaults.
    sigma: Sigma = field(default_factory=lambda: Sigma(law=""))
    weight: str = ""
    augment: float = 0.0  # probability of each of EDM's augmentations
    drop_condition: float = 0.0  # condition dropout, for guidance; DiT, PixArt-alpha: 0.1
    optim: Optim = field(default_factory=lambda: Optim(lr=1e-3, beta1=0.9))  # EDM, CIFAR-10
    ema: Ema = field(default_factory=Ema)


@dataclass
class Generator:
    """One-step G(z) = D(sigma_init z; sigma_init), or a K-step generator."""

    source: str = ""  # initial weights, as teacher.source; empty: the teacher's
    family: str = ""  # as teacher.family
    steps: int | None = None  # K, the NFE of a sample; None: the number of levels, or 1
    sigma_init: float = 2.5  # level of the first call; the others are equally spaced in time u
    shift: float = 1.0  # time shift, as teacher.sampler.shift; multiplies all levels
    levels: tuple[float, ...] = ()  # explicit noise levels, instead of the three fields above
    renoise: str = "fresh"  # noise of the calls after the first; models.generator.RENOISE
    start: int = 0  # images of fake-score warm-up before the first generator update
    sigma: Sigma = field(default_factory=lambda: Sigma(mean=-3.5, std=2.5))
    weight: str = "uniform"
    optim: Optim = field(default_factory=Optim)
    ema: Ema = field(default_factory=Ema)


@dataclass
class FakeScore:
    """The denoiser of the generator's samples, updated by denoising score matching."""

    sigma: Sigma = field(default_factory=Sigma)
    weight: str = "edm"
    scale: float = 1.0  # factor of the loss
    pull: float = 0.0  # interpolation towards the generator after its updates; SenseFlow: 0.03
    augment: float = 0.0  # probability of each of EDM's augmentations; SiD on CIFAR-10: 0.12
    # LSG scales (arXiv:2406.01561). 1: no guidance, as in SIM; 0: unconditional. Kappa 4, the
    # teacher's scale, is teacher.guidance.
    guidance: float = 1.0  # kappa 2, in the generator's update
    learnt_guidance: float = 1.0  # kappa 1, in the fake score's own update
    drop_condition: float | None = None  # condition dropout; None: 0.1 if guided, else 0
    optim: Optim = field(default_factory=Optim)


@dataclass
class Loss:
    """The generator's loss, SIM's distance, and the options of both."""

    name: str = "sim"  # losses.registry.LOSSES
    distance: str = "pseudo_huber"  # losses.distances.DISTANCES
    units: str = "denoiser"  # or "score": divide by sigma^2 first, SIM eq. 3.7
    scale: float = 1.0  # factor of the loss; SiD's official code: 100


extend(Loss, *LOSSES.values(), *DISTANCES.values())


@dataclass
class Adversarial:
    """SiDA's discriminator in the fake score, trained on real.source."""

    fake_score_scale: float = 0.0  # factor of the discriminator's loss; SiDA: 1; 0: off
    generator_scale: float = 0.0  # factor of the generator's adversarial loss; SiDA: 0.01
    divergence: str = ""  # f-divergence that reweights Diff-Instruct; adversarial.DIVERGENCES
    start: int = 0  # images before the generator uses the discriminator; SiDA: 200,000


@dataclass
class Evaluation:
    """Metrics at the end of a run and during training."""

    reference: str = ""  # real data, statistics (.npz) or a URL; empty: data.source
    limit: int = 0  # use the first n real images; 0: all
    features: tuple[str, ...] = ("inception",)  # feature spaces, evaluation.features.EXTRACTORS
    metrics: tuple[str, ...] = ("frechet", "precision_recall", "class_agreement")
    samples: int = 50_000  # as in FID-50k
    teacher_steps: tuple[int, ...] = (18,)  # sampler steps (EDM, CIFAR-10); Heun: NFE 2 n - 1
    batch: int = 100  # our choice
    every: int = 0  # training steps between evaluations of the generator; 0: none
    online_samples: int = 5000  # samples of an evaluation during training; our choice
    best: str = ""  # keep the best generator by this metric, e.g. "inception/fid"


@dataclass
class Config:
    """Settings of one experiment; every field is also a flag, --config.FIELD=VALUE.

    The field comments state meaning, unit and source. Defaults are SIM's published settings where
    there are any. Parts are records of simjax.config: Teacher, Generator, FakeScore, Loss, ...

    >>> import simjax
    >>> from simjax import config as c
    >>> config = simjax.Config(steps=500, batch=64, loss=c.Loss(distance="huber"))
    >>> config.generator.sigma_init, config.loss.name
    (2.5, 'sim')
    """

    seed: int = 0
    steps: int = 1000
    batch: int = 256
    guidance: str = ""  # fake-score scales by name, config.scales.GUIDANCE; empty: by value
    fake_score_updates: int = 1  # per generator update; DMD2: 5
    accumulate: int = 1  # gradient accumulation: number of micro-batches
    steps_per_call: int = 1  # training steps scanned inside one compiled call
    compute_dtype: str = "float32"  # inside the networks; or "bfloat16"
    remat: str = "none"  # rematerialisation policy, networks.layers.REMAT
    scan_blocks: bool = True  # scan over transformer blocks, compiling one; equal results
    fsdp: int = 8  # maximum devices to shard states over; our choice: those of one host
    data: Data = field(default_factory=Data)
    real: Real = field(default_factory=Real)
    network: Network | None = None  # None: the network of teacher.source
    dropout: float | None = None  # of the network being updated; None: the network's default
    text: Text = field(default_factory=Text)
    autoencoder: str = ""  # folder of a diffusers AutoencoderKL, to decode latents into images
    teacher: Teacher = field(default_factory=Teacher)
    generator: Generator = field(default_factory=Generator)
    fake_score: FakeScore = field(default_factory=FakeScore)
    loss: Loss = field(default_factory=Loss)
    adversarial: Adversarial = field(default_factory=Adversarial)
    evaluation: Evaluation = field(default_factory=Evaluation)
    probe: bool = True  # probe the teacher first; its curves bound the alarms during training
    grid: int = 10  # images per side of the sample grids
    log_every: int = 100
    sample_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    checkpoint_limit: int = 900  # timeout in seconds of a multi-process save; our choice
