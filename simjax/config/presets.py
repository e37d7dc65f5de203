"""Published settings that change several fields of a config at once, for the files in configs/."""

import dataclasses

from simjax.config import schema


def sida(config: schema.Config, *, real: str, million_images: int) -> schema.Config:
    """SiD's run as SiDA, from its authors' scripts (arXiv:2410.14919).

    SiD2A is the same with a finished SiD generator as generator.source.

    Args:
      config: of SiD, with its learning rates, batch and EMA.
      real: the real images, as real.source.
      million_images: generated in all.
    """
    optim = config.fake_score.optim
    return dataclasses.replace(
        config,
        steps=million_images * 10**6 // config.batch,
        real=schema.Real(source=real),
        generator=dataclasses.replace(
            config.generator,
            start=100_000,
            sigma=schema.Sigma(law="karras", t_max=0.8),
            optim=dataclasses.replace(config.generator.optim, beta1=0.0),
        ),
        fake_score=dataclasses.replace(
            config.fake_score, optim=dataclasses.replace(optim, clip=1.0)
        ),
        loss=schema.Loss(name="sid", alpha=1.0, scale=100.0),
        adversarial=schema.Adversarial(fake_score_scale=1.0, generator_scale=0.01, start=200_000),
    )
