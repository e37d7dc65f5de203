"""SIM on ImageNet 256 from DiT-XL/2, in Stable Diffusion's latents.

python -m simjax.main --config=configs/imagenet256_dit.py
python -m simjax.main --config=configs/imagenet256_dit.py:lsg  # SiD-LSG: the fake score guided too

There is no published run to compare with; the settings are SIM's for PixArt-alpha. Published
FID-50k: teacher 2.27 with guidance 1.5 and 250 steps (DiT, table 4). Ours: not measured yet.
"""

import functools

from simjax import config as c


def get_config(method: str = "sim") -> c.Config:
    return c.pick(method, sim=_sim, lsg=_lsg)


def _lsg() -> c.Config:
    """SiD-LSG (arXiv:2406.01561): the fake score uses the teacher's guidance scale."""
    config = _sim()
    config.guidance = "lsg"
    return config


def _sim() -> c.Config:
    # SIM app. B.3, PixArt-alpha; eps: SiD's value for half precision
    adam = functools.partial(c.Optim, lr=5e-6, beta1=0.0, beta2=0.999, eps=1e-6)
    sigma = functools.partial(c.Sigma, mean=-2.0, std=2.0, low=0.01, high=156.6155)  # SIM app. B.3
    return c.Config(
        steps=16_000,  # SIM app. B.3, PixArt-alpha
        batch=1024,  # SIM app. B.3, PixArt-alpha
        compute_dtype="bfloat16",  # SIM app. B.3, PixArt-alpha
        remat="blocks",  # our choice, to save memory; SIM, PixArt-alpha: the same
        sample_every=500,  # our choice
        checkpoint_every=500,  # our choice
        teacher=c.Teacher(
            source="DiT-XL-2-256x256",
            guidance=1.5,  # DiT, table 4
            sampler=c.Sampler(solver="dpm_solver", ladder="ddpm_linear"),  # our choice
        ),
        evaluation=c.Evaluation(teacher_steps=(25,)),  # our choice
        generator=c.Generator(
            sigma_init=2.5,  # SIM app. B.3, PixArt-alpha
            sigma=sigma(),
            weight="uniform",  # SIM app. B.3, PixArt-alpha
            optim=adam(),
            ema=c.Ema(half_life_kimg=500.0, rampup_ratio=0.05),  # SiD; SIM states none
        ),
        fake_score=c.FakeScore(
            sigma=sigma(),
            weight="uniform",  # SIM app. B.3, PixArt-alpha
            optim=adam(),
        ),
        loss=c.Loss(distance="pseudo_huber", c=1e-3),  # SIM authors, issue 5 of their repository
    )
