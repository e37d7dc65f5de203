"""SIM on class-conditional Fashion-MNIST, 28 x 28: two CPU cores.

python -m simjax.main --config=configs/fashion.py                # SIM, one step
python -m simjax.main --config=configs/fashion.py:two_steps      # 2 NFE
python -m simjax.main --config=configs/fashion.py:four_steps     # 4 NFE
python -m simjax.main --config=configs/fashion.py:sid            # alpha = 1; :sid_half: alpha = 1/2
python -m simjax.main --config=configs/fashion.py:diff_instruct
python -m simjax.main --config=configs/fashion.py:real_uid       # with real images
python -m simjax.main --config=configs/fashion.py:sida           # with real images, discriminator

Trains a teacher, then distils it. Data: Debian's package dataset-fashion-mnist; otherwise set
--config.data.source (and --config.real.source for :real_uid and :sida) to idx:FOLDER or
tfds:fashion_mnist. Values without a source are our choice; other fields keep their published
defaults. Results: configs/README.md.
"""

from simjax import config as c

DATA = "idx:/usr/share/datasets/fashion-mnist"


def get_config(method: str = "one_step") -> c.Config:
    return c.pick(
        method,
        one_step=_sim,
        two_steps=lambda: _several(2, steps=1600),
        four_steps=lambda: _several(4, steps=2400),
        sid=lambda: _with(c.Loss(name="sid", alpha=1.0)),
        sid_half=lambda: _with(c.Loss(name="sid", alpha=0.5)),  # the exact gradient
        diff_instruct=lambda: _with(c.Loss(name="diff_instruct")),
        real_uid=_real_uid,
        sida=_sida,
    )


def _several(calls: int, steps: int) -> c.Config:
    """More training steps, since each one trains one call only."""
    config = _sim()
    config.generator.steps, config.steps = calls, steps
    return config


def _with(loss: c.Loss) -> c.Config:
    config = _sim()
    config.loss = loss
    return config


def _real_uid() -> c.Config:
    config = _with(c.Loss(name="real_uid", real_alpha=0.94, real_beta=0.96))  # as on the digits
    config.real.source = DATA
    return config


def _sida() -> c.Config:
    """SiDA; its schedule scaled to this run (5 and 10 %)."""
    config = _with(c.Loss(name="sid", alpha=1.0))
    config.real.source = DATA
    images = config.steps * config.batch
    config.generator.start, config.adversarial.start = images // 20, images // 10
    config.fake_score.optim.clip = 1.0  # SiDA
    config.adversarial.fake_score_scale = 1.0  # SiDA
    config.adversarial.generator_scale = 1e-2  # SiDA
    return config


def _sim() -> c.Config:
    return c.Config(
        steps=1000,
        batch=64,
        evaluation=c.Evaluation(
            features=("pixels", "classifier"),
            limit=10_000,  # the first 10,000: precision and recall cost O(n^2)
            samples=10_000,
            teacher_steps=(18,),  # EDM, CIFAR-10; the slowest part of the report
            batch=100,  # as in the sample pictures: one compiled sampler
        ),
        log_every=20,
        sample_every=100,
        checkpoint_every=100,  # an interruption loses at most this many
        data=c.Data(source=DATA),
        network=c.SongUNet(
            resolution=28,  # then 14 and 7
            image_channels=1,
            label_dim=10,
            augment_dim=0,
            channels=16,
            channel_mult=(1, 2, 2),
            blocks=1,
            attention_resolutions=(),  # only the bottleneck's, at 7 x 7
            dropout=0.0,
        ),
        teacher=c.Teacher(
            sigma_data=0.706,  # standard deviation of the 60,000 training images, in [-1, 1]
            # Higher than EDM's (-1.2, 1.2): after 1500 steps, Frechet distance in the classifier's
            # features is 21 instead of 29.
            sigma=c.Sigma(law="lognormal", mean=0.0, std=1.4),
            steps=4000,
            batch=64,
            optim=c.Optim(lr=3e-3, beta1=0.9, beta2=0.99, warmup_steps=100, final_lr=0.02),
            ema=c.Ema(half_life_kimg=22.0, rampup_ratio=0.0),  # beta 0.998
        ),
        generator=c.Generator(
            sigma_init=2.33,
            sigma=c.Sigma(law="lognormal", mean=1.06, std=1.25, low=0.134, high=51.7),
            optim=c.Optim(lr=6e-4, warmup_steps=20, final_lr=0.1),
            ema=c.Ema(half_life_kimg=4.4, rampup_ratio=0.0),  # beta 0.99
        ),
        fake_score=c.FakeScore(
            sigma=c.Sigma(law="lognormal", mean=1.06, std=1.25, low=0.067, high=103.0),
            optim=c.Optim(lr=1.2e-3, warmup_steps=20, final_lr=0.1),
        ),
        loss=c.Loss(distance="pseudo_huber", c=0.001),
    )
