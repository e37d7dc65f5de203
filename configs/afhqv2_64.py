"""SIM on unconditional AFHQv2 64 from EDM's DDPM++ teacher.

python -m simjax.main --config=configs/afhqv2_64.py        # SIM
python -m simjax.main --config=configs/afhqv2_64.py:sid    # SiD's published settings
python -m simjax.main --config=configs/afhqv2_64.py:sida   # SiDA's, with real images
python -m simjax.main --config=configs/afhqv2_64.py:sid2a  # SiD2A's, from the SiD run

SIM and SiD need no data set. SIM reports no AFHQv2 run: loss and noise levels are SIM's for
CIFAR-10, optimizers SiD's. Published FID-50k: SiD 1.628. With real images: SiD2A 1.276. Ours: not
measured yet.
"""

import functools

from simjax import config as c


def get_config(method: str = "sim") -> c.Config:
    return c.pick(method, sim=sim, sid=sid, sida=sida, sid2a=sid2a)


def sim() -> c.Config:
    # SiD; eps: SiD's value for half precision
    adam = functools.partial(c.Optim, lr=5e-6, beta1=0.0, beta2=0.999, eps=1e-6)
    return c.Config(
        steps=976_562,  # 500 million images, SiD's run script
        batch=512,  # SiD's run script
        compute_dtype="bfloat16",  # our choice; SiD: float16
        sample_every=1000,  # our choice
        checkpoint_every=5000,  # our choice
        teacher=c.Teacher(source="edm-afhqv2-64x64-uncond-vp"),
        evaluation=c.Evaluation(teacher_steps=(40,)),  # EDM
        dropout=0.05,  # SiD's run script
        generator=c.Generator(
            sigma_init=2.5,  # SiD
            sigma=c.Sigma(mean=-3.5, std=2.5),  # SIM app. B.2, CIFAR-10
            optim=adam(),
            ema=c.Ema(half_life_kimg=500.0, rampup_ratio=0.05),  # SiD
        ),
        fake_score=c.FakeScore(
            sigma=c.Sigma(mean=-1.2, std=1.2),  # SiD; EDM table 1
            augment=0.15,  # SiD's run script
            optim=adam(),
        ),
        loss=c.Loss(distance="pseudo_huber", c=1e-3),  # SIM authors, issue 5 of their repository
    )


def sid() -> c.Config:
    config = sim()
    config.generator.sigma = c.Sigma(law="karras", t_max=0.8)  # SiD: tmax = 800
    config.loss = c.Loss(name="sid", alpha=1.0, scale=100.0)  # SiD's run script
    return config


def sida() -> c.Config:
    # A zip made by EDM's dataset_tool.py. 200 million images: SiDA's run script.
    return c.sida(sid(), real="zip:datasets/afhqv2-64x64.zip", million_images=200)


def sid2a() -> c.Config:
    config = c.sida(sid(), real="zip:datasets/afhqv2-64x64.zip", million_images=100)
    config.generator.source = "runs/afhqv2_64-sid"  # --workdir of the SiD run, or a published file
    return config
