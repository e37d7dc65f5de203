"""The schema of a run: every field, its default and its source.

A config file returns a `Config`; the command line assigns its fields
(`--config.generator.optim.lr=2e-5`) and refuses unknown ones. Defaults are SIM's published CIFAR-10
settings (arXiv:2410.16794, appendix B.2) where the paper has them. Options of a loss, a distance, a
law and a network stand in their own files, and come from there. Only models/ and runs/, and what
stands above them, read a Config; everything below takes plain values.
"""

from dataclasses import dataclass, field

from simjax.config.options import extend
from simjax.diffusion.schedule import SIGMA_LAWS
from simjax.losses.distances import DISTANCES
from simjax.losses.registry import LOSSES
from simjax.networks.network import Network
from simjax.networks.t5 import T5

AUGMENT_DIM = 9  # labels of EDM's augmentation pipe


@dataclass
class Data:
    """The real images that train a teacher and judge samples."""

    source: str = ""  # none, digits, tfds:NAME, zip:PATH, idx:DIR (simjax/data)
    split: str = "train"


@dataclass
class Real:
    """The real images that distillation learns from, of the few methods that need some."""

    source: str = ""  # as data.source
    split: str = "train"


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
    """The law that training draws noise levels from, and its options."""

    law: str = "lognormal"  # diffusion.schedule.SIGMA_LAWS


extend(Sigma, *SIGMA_LAWS.values())


@dataclass
class Optim:
    """Adam; beta1 = 0 stores no first moment. The rate: linear warm-up, then a cosine."""

    lr: float = 1e-5
    beta1: float = 0.0
    beta2: float = 0.999
    eps: float = 1e-8
    warmup_steps: int = 0
    final_lr: float = 1.0  # last rate over lr; 1 keeps it constant
    clip: float = 0.0  # largest size of a gradient's elements; SiDA's fake score: 1; 0: none


@dataclass
class Ema:
    """Moving average: beta = 0.5^(batch / min(half_life, rampup_ratio * images seen))."""

    half_life_kimg: float = 500.0
    rampup_ratio: float = 0.05  # 0 turns the ramp off


@dataclass
class Sampler:
    """The teacher's sampler: EDM's algorithm 2 for its networks; churn 0: deterministic."""

    sigma_min: float = 0.002  # EDM table 1
    sigma_max: float = 80.0
    rho: float = 7.0
    shift: float = 1.0  # of time, on the ladders of flows; SD3, SANA: 3
    u_max: float = 0.999  # of a flow's time, where its ladders begin
    u_last: float = 0.04  # of a flow's time, before the last step of "flow_sde"; SiT's
    churn: float = 0.0
    churn_low: float = 0.0  # range of sigma in which churn acts
    churn_high: float = float("inf")
    churn_inflation: float = 1.0
    solver: str = ""  # diffusion.sampler.SOLVERS; with ladder "ddpm_linear", euler is DDIM
    ladder: str = ""  # diffusion.schedule.LADDERS; empty, as solver: the teacher's family's own


@dataclass
class Teacher:
    """The pretrained model: one that `source` names, or one trained first, on config.data."""

    source: str = ""  # a known name (porting/zoo.py), a URL, a file; it brings its network
    family: str = ""  # dit, where a file of the source is of DiT or SiT and does not tell which
    sha256: str = ""  # that the file must have; empty accepts, and records, what comes
    sampler: Sampler = field(default_factory=Sampler)
    dtype: str = "float32"  # of its parameters while it is distilled; or "bfloat16"
    guidance: float = 1.0  # classifier-free scale w, when it is distilled and sampled; 1: none
    guided_channels: int | None = None  # the first of a sample; 0: all; None: 3 of DiT's, else all
    # The rest is for training one here.
    precondition: str = "edm"  # diffusion.families.FAMILIES
    sigma_data: float = 0.5  # EDM table 1
    steps: int = 0  # no default fits all data
    batch: int = 256
    sigma: Sigma = field(
        default_factory=lambda: Sigma(law="")
    )  # empty, as weight: its family's own
    weight: str = ""
    augment: float = 0.0  # probability of each of EDM's augmentations
    drop_condition: float = 0.0  # probability; what guidance needs. DiT, PixArt-alpha: 0.1
    optim: Optim = field(default_factory=lambda: Optim(lr=1e-3, beta1=0.9))  # EDM, CIFAR-10
    ema: Ema = field(default_factory=Ema)


@dataclass
class Generator:
    """G(z) = D(sigma_init z; sigma_init), or K calls; updated by the method's loss."""

    source: str = ""  # weights to start from, as teacher.source; empty: the teacher's
    family: str = ""  # as teacher.family
    steps: int | None = None  # K, calls of a sample; None: as many as levels, or one
    sigma_init: float = 2.5  # the first call's level; the others follow in equal times u
    shift: float = 1.0  # of that time, as teacher.sampler.shift; all levels times this
    levels: tuple[float, ...] = ()  # of the calls, instead of the three above
    renoise: str = "fresh"  # models.generator.RENOISE: the noise of the calls after the first
    start: int = 0  # images that the fake score learns from before the generator moves
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
    pull: float = 0.0  # towards the generator, after each of its updates; SenseFlow: 0.03
    augment: float = 0.0  # probability of each of EDM's augmentations; SiD on CIFAR-10: 0.12
    # Scales of LSG (arXiv:2406.01561): kappa 2, in the generator's update, and kappa 1, while it
    # learns; 1: none, as SIM, 0: without condition. The teacher's, kappa 4, is teacher.guidance.
    guidance: float = 1.0
    learnt_guidance: float = 1.0
    drop_condition: float | None = None  # probability while it learns; None: 0.1 if guided, else 0
    optim: Optim = field(default_factory=Optim)


@dataclass
class Loss:
    """The generator's loss, for SIM its distance, and the options of both."""

    name: str = "sim"  # losses.registry.LOSSES
    distance: str = "pseudo_huber"  # losses.distances.DISTANCES
    units: str = "denoiser"  # or "score": divide by sigma^2 first, SIM eq. 3.7
    scale: float = 1.0  # SiD's official code: 100


extend(Loss, *LOSSES.values(), *DISTANCES.values())


@dataclass
class Adversarial:
    """SiDA's discriminator in the fake score, which learns from real.source."""

    fake_score_scale: float = 0.0  # of its loss; SiDA: 1; 0: there is no discriminator
    generator_scale: float = 0.0  # of the generator's; SiDA: 0.01
    divergence: str = ""  # whose weights Diff-Instruct has; losses.adversarial.DIVERGENCES
    start: int = 0  # images after which it counts for the generator; SiDA: 200,000


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
    guidance: str = ""  # the fake score's scales by name, of config.scales.GUIDANCE; or its fields
    fake_score_updates: int = 1  # before each of the generator's; DMD2: 5
    accumulate: int = 1  # slices of a batch whose gradients are summed one after another
    steps_per_call: int = 1  # whole steps scanned inside one compiled call
    compute_dtype: str = "float32"  # inside the networks; or "bfloat16"
    remat: str = "none"  # what backward passes recompute, of networks.layers.REMAT
    scan_blocks: bool = True  # transformers compile one block, not all; the same numbers
    fsdp: int = 8  # devices that states are split over, at most; our choice: those of one host
    data: Data = field(default_factory=Data)
    real: Real = field(default_factory=Real)
    network: Network | None = None  # None: the one that comes with teacher.source
    dropout: float | None = None  # of whichever is being updated; None: the network's own
    text: Text = field(default_factory=Text)
    autoencoder: str = ""  # folder of diffusers' AutoencoderKL, which decodes latents for pictures
    teacher: Teacher = field(default_factory=Teacher)
    generator: Generator = field(default_factory=Generator)
    fake_score: FakeScore = field(default_factory=FakeScore)
    loss: Loss = field(default_factory=Loss)
    adversarial: Adversarial = field(default_factory=Adversarial)
    evaluation: Evaluation = field(default_factory=Evaluation)
    probe: bool = True  # look at the teacher before; its curves are the bounds of alarms
    grid: int = 10  # images a side of the sample pictures
    log_every: int = 100
    sample_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    checkpoint_limit: int = 900  # seconds that a save of several processes may take; our choice
