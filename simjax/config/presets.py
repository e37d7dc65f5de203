"""Published settings that span several fields, used in configs/."""

import dataclasses

from simjax.config import schema


def sida(config: schema.Config, *, real: str, million_images: int) -> schema.Config:
    """Turns a SiD config into SiDA, with the authors' settings.

    From the scripts of arXiv:2410.14919. SiD2A is the same with a finished SiD generator as
    generator.source.

    Args:
      config: a SiD config with its learning rates, batch and EMA.
      real: value of real.source.
      million_images: training length, in millions of generated images.

    >>> sida(schema.Config(batch=256), real="digits", million_images=2).steps
    7812
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
