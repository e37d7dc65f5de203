"""SIM with a flow-matching teacher, class-conditional 8 x 8 digits, in minutes on two CPU cores.

python -m simjax.main --config=configs/digits_flow.py
python -m simjax.main --config=configs/digits_flow.py:guided  # LSG, all scales 1.5

As configs/digits.py but for the teacher: its network predicts eps - x0, its times are logit-normal,
its sampler takes Euler's steps of equal time. Every value below is our choice, found by trial.
"""

from simjax import config as c


def get_config(method: str = "plain") -> c.Config:
    return c.pick(method, plain=_plain, guided=_guided)


def _plain() -> c.Config:
    return c.Config(
        steps=500,
        steps_per_call=10,
        batch=64,
        evaluation=c.Evaluation(
            features=("pixels", "classifier"), samples=1797, teacher_steps=(32, 16), batch=100
        ),
        sample_every=100,
        checkpoint_every=100,
        data=c.Data(source="digits"),
        network=c.SongUNet(
            resolution=8,
            image_channels=1,
            label_dim=10,
            augment_dim=0,
            channels=16,
            channel_mult=(1, 2),
            blocks=1,
            attention_resolutions=(),
            dropout=0.0,
        ),
        teacher=c.Teacher(
            precondition="flow",
            steps=800,
            batch=64,
            optim=c.Optim(lr=5e-3, beta1=0.9, beta2=0.99, warmup_steps=50, final_lr=0.02),
            ema=c.Ema(half_life_kimg=4.41, rampup_ratio=0.0),  # beta 0.99
        ),
        generator=c.Generator(
            sigma_init=1.25,
            sigma=c.Sigma(law="karras", t_max=0.5),
            optim=c.Optim(lr=6e-4, warmup_steps=20, final_lr=0.1),
            ema=c.Ema(half_life_kimg=2.2, rampup_ratio=0.0),  # beta 0.98
        ),
        fake_score=c.FakeScore(
            sigma=c.Sigma(mean=-0.4, std=1.1),
            weight="flow",
            optim=c.Optim(lr=1.2e-3, warmup_steps=20, final_lr=0.1),
        ),
        loss=c.Loss(distance="pseudo_huber", c=0.01),
    )


def _guided() -> c.Config:
    config = _plain()
    config.teacher.guidance, config.guidance = 1.5, "lsg"
    config.teacher.drop_condition = 0.1  # DiT, SiT
    # A guided teacher is of no law: the higher the levels at which a generator matches it, the
    # less its samples vary. At 0.5 they are 1.07 to 1.32 times as far as the teacher's own.
    config.generator.sigma.t_max = 0.4
    return config
