"""SIM text to image at 512 pixels: the paper's one-step PixArt-alpha.

python -m simjax.main --config=configs/pixart512.py
python -m simjax.main --config=configs/pixart512.py:four_steps  # 4 NFE; no published run

Published, one step / the teacher's 30 (SIM, COCO-2017 prompts): aesthetic score 6.42 / 5.97,
ImageReward 0.67 / 0.82, PickScore 0.223 / 0.226. Ours: not measured yet.
"""

import functools

from simjax import config as c


def get_config(generator: str = "one_step") -> c.Config:
    return c.pick(generator, one_step=_one_step, four_steps=_four_steps)


def _four_steps() -> c.Config:
    """Levels 2.5, 1.15, 0.56, 0.22: SIM's sigma_init, then SiD-DiT's rule (arXiv:2509.25127)."""
    config = _one_step()
    config.generator.steps = 4  # SiD-DiT
    return config


def _one_step() -> c.Config:
    # SIM app. B.3; eps: SiD's value for half precision, SIM states none
    adam = functools.partial(c.Optim, lr=5e-6, beta1=0.0, beta2=0.999, eps=1e-6)
    sigma = functools.partial(c.Sigma, mean=-2.0, std=2.0, low=0.01, high=156.6155)  # SIM app. B.3
    return c.Config(
        steps=16_000,  # SIM app. B.3
        batch=1024,  # SIM app. B.3
        accumulate=8,  # SIM app. B.3
        compute_dtype="bfloat16",  # SIM app. B.3
        remat="blocks",  # SIM app. B.3: gradient checkpointing
        sample_every=500,  # our choice
        checkpoint_every=500,  # our choice
        teacher=c.Teacher(
            source="PixArt-XL-2-512x512",  # SIM app. B.3
            dtype="bfloat16",  # our choice: halves the teacher's memory
            guidance=4.5,  # PixArt-alpha's default; SIM states none
            sampler=c.Sampler(solver="dpm_solver", ladder="ddpm_linear"),  # PixArt-alpha
        ),
        evaluation=c.Evaluation(teacher_steps=(20,)),  # PixArt-alpha's default
        generator=c.Generator(
            sigma_init=2.5,  # SIM app. B.3
            sigma=sigma(),
            weight="uniform",  # SIM app. B.3
            optim=adam(),
            ema=c.Ema(half_life_kimg=500.0, rampup_ratio=0.05),  # SiD; SIM states none
        ),
        fake_score=c.FakeScore(
            sigma=sigma(),
            weight="uniform",  # SIM app. B.3
            optim=adam(),
        ),
        loss=c.Loss(distance="pseudo_huber", c=1e-3),  # SIM authors, issue 5 of their repository
    )
