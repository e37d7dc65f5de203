"""SIM on class-conditional CIFAR-10 from EDM's DDPM++ teacher.

python -m simjax.main --config=configs/cifar10.py        # SIM
python -m simjax.main --config=configs/cifar10.py:sid    # SiD's published settings
python -m simjax.main --config=configs/cifar10.py:sida   # SiDA's, with real images
python -m simjax.main --config=configs/cifar10.py:sid2a  # SiD2A's, from the SiD run

SIM and SiD need no data set. Published FID-50k: SIM 1.96, SiD 1.710 (re-run by SIM's authors 2.34),
teacher 1.82 with 35 NFE. With real images: SiDA 1.44, SiD2A 1.396. Ours: not measured yet.
"""

import functools

from simjax import config as c


def get_config(method: str = "sim") -> c.Config:
    return c.pick(method, sim=sim, sid=sid, sida=sida, sid2a=sid2a)


def sim() -> c.Config:
    adam = functools.partial(c.Optim, lr=1e-5, beta1=0.0, beta2=0.999, eps=1e-8)  # SIM app. B.2
    return c.Config(
        steps=3_125_000,  # 800 million images, SiD's run script (SIM: same)
        batch=256,  # SIM app. B.2
        sample_every=1000,  # our choice
        checkpoint_every=5000,  # our choice
        teacher=c.Teacher(source="edm-cifar10-32x32-cond-vp"),
        dropout=0.13,  # SiD's run script; SIM states none
        generator=c.Generator(
            sigma_init=2.5,  # SIM app. B.2
            sigma=c.Sigma(mean=-3.5, std=2.5),  # SIM app. B.2
            optim=adam(),
            ema=c.Ema(half_life_kimg=500.0, rampup_ratio=0.05),  # SiD; SIM states none
        ),
        fake_score=c.FakeScore(
            sigma=c.Sigma(mean=-1.2, std=1.2),  # SIM app. B.2
            augment=0.12,  # SiD's run script; SIM states none
            optim=adam(),
        ),
        loss=c.Loss(distance="pseudo_huber", c=1e-3),  # SIM authors, issue 5 of their repository
    )


def sid() -> c.Config:
    config = sim()
    config.generator.sigma = c.Sigma(law="karras", t_max=0.8)  # SiD: tmax = 800
    config.loss = c.Loss(name="sid", alpha=1.2, scale=100.0)  # SiD's run script
    return config


def sida() -> c.Config:
    # A zip made by EDM's dataset_tool.py. 300 million images: SiDA's run script.
    return c.sida(sid(), real="zip:datasets/cifar10-32x32.zip", million_images=300)


def sid2a() -> c.Config:
    config = c.sida(sid(), real="zip:datasets/cifar10-32x32.zip", million_images=100)
    config.generator.source = "runs/cifar10-sid"  # --workdir of the SiD run, or a published file
    return config
