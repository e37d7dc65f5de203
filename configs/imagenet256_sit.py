"""SIM on ImageNet 256 from SiT-XL/2, a flow-matching teacher in latents.

python -m simjax.main --config=configs/imagenet256_sit.py
python -m simjax.main --config=configs/imagenet256_sit.py:sid  # SiD with SiD-DiT's settings
python -m simjax.main --config=configs/imagenet256_sit.py:lsg  # SIM with SiD-LSG's guidance
python -m simjax.main --config=configs/imagenet256_sit.py:four_steps      # SiD, 4 NFE
python -m simjax.main --config=configs/imagenet256_sit.py:sim_four_steps  # SIM, 4 NFE

The latents are those of Stable Diffusion's autoencoder. There is no published SIM or SiD run with
a SiT teacher. Published FID-50k: teacher 2.06 with guidance 1.5 and 250 SDE steps (SiT,
arXiv:2401.08740). Ours: not measured yet.
"""

import functools
import math

from simjax import config as c


def get_config(method: str = "sim") -> c.Config:
    return c.pick(
        method,
        sim=_sim,
        sid=_sid,
        lsg=_lsg,
        four_steps=lambda: _four_steps(_sid()),
        sim_four_steps=lambda: _four_steps(_sim()),
    )


def _four_steps(config: c.Config) -> c.Config:
    """SiD-DiT's sampler: levels at u = 0.999 and its quarters, fresh noise."""
    config.generator.steps, config.generator.sigma_init = 4, 999.0  # 0.999 / (1 - 0.999)
    return config


def _sim() -> c.Config:
    # As configs/imagenet256_dit.py: SIM's settings for PixArt-alpha.
    adam = functools.partial(c.Optim, lr=5e-6, beta1=0.0, beta2=0.999, eps=1e-6)  # SIM app. B.3
    sigma = functools.partial(c.Sigma, mean=-2.0, std=2.0, low=0.01, high=156.6155)  # SIM app. B.3
    return c.Config(
        steps=16_000,  # SIM app. B.3, PixArt-alpha
        batch=1024,  # SIM app. B.3, PixArt-alpha
        compute_dtype="bfloat16",  # SIM app. B.3, PixArt-alpha
        remat="blocks",  # our choice, to save memory
        sample_every=500,  # our choice
        checkpoint_every=500,  # our choice
        teacher=c.Teacher(source="SiT-XL-2-256x256", guidance=1.5),  # SiT, section 4
        evaluation=c.Evaluation(teacher_steps=(50,)),  # our choice
        generator=c.Generator(
            sigma_init=2.5,  # SIM app. B.3, PixArt-alpha
            sigma=sigma(),
            optim=adam(),
            ema=c.Ema(half_life_kimg=500.0, rampup_ratio=0.05),  # SiD; SIM states none
        ),
        fake_score=c.FakeScore(sigma=sigma(), weight="flow", optim=adam()),  # SiT's own loss
        loss=c.Loss(distance="pseudo_huber", c=1e-3),  # SIM authors, issue 5 of their repository
    )


def _sid() -> c.Config:
    """SiD-DiT (arXiv:2509.25127): settings of its SANA script, one step."""
    config = _sim()
    sigma = functools.partial(c.Sigma, mean=math.log(2), std=1.6)
    adam = functools.partial(c.Optim, lr=5e-6, beta1=0.0, beta2=0.999, eps=1e-8)
    config.batch, config.guidance = 256, "lsg"
    config.loss = c.Loss(name="sid", alpha=1.0, scale=100.0)
    config.generator.sigma, config.generator.weight = sigma(), "one_minus_u"
    config.generator.optim = adam()
    config.fake_score = c.FakeScore(sigma=sigma(), weight="flow", optim=adam())
    return config


def _lsg() -> c.Config:
    """SiD-LSG (arXiv:2406.01561): the fake score uses the teacher's guidance scale."""
    config = _sim()
    config.guidance = "lsg"
    return config
