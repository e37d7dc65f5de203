"""Methods that train on real images, and validation of their settings."""

from simjax.config import schema, serial
from simjax.config.scales import fake_score_scales
from simjax.errors import ConfigError
from simjax.losses.registry import WITH_REAL_IMAGES

SOURCES = "digits, idx:DIR, zip:PATH or tfds:NAME"


def needs_real_images(config: schema.Config) -> bool:
    """Whether the fake score is also trained on real images.

    >>> needs_real_images(schema.Config(loss=schema.Loss(name="real_uid")))
    True
    """
    return config.loss.name in WITH_REAL_IMAGES or config.adversarial.fake_score_scale > 0


def require_real_images(config: schema.Config) -> None:
    """Raises if required real images or the discriminator are missing.

    Raises:
      ConfigError: names the field and the remedy.
    """
    options = config.adversarial
    for path in ("fake_score_scale", "generator_scale", "start"):
        if getattr(options, path) < 0:
            raise ConfigError(f"adversarial.{path} = {getattr(options, path)}: expected 0 or more.")
    for path in ("generator.optim.clip", "fake_score.optim.clip", "teacher.optim.clip"):
        if serial.get_field(config, path) < 0:
            raise ConfigError(
                f"{path} = {serial.get_field(config, path)}: expected 0 (none) or more."
            )
    for field in ("generator_scale", "divergence"):
        if getattr(options, field) and not options.fake_score_scale:
            raise ConfigError(
                f"adversarial.{field} = {getattr(options, field)!r} needs a discriminator, and "
                "none is trained; set --config.adversarial.fake_score_scale=1, or leave it out."
            )
    if options.divergence and config.loss.name != "diff_instruct":
        raise ConfigError(
            f"adversarial.divergence = {options.divergence!r} reweights Diff-Instruct, but "
            f"loss.name = {config.loss.name!r}; set --config.loss.name=diff_instruct."
        )
    if options.fake_score_scale and fake_score_scales(config) != (1, 1):
        raise ConfigError(
            "the discriminator does not support a guided fake score, and its guidance scales are "
            f"{fake_score_scales(config)}; leave out guidance, or adversarial.fake_score_scale."
        )
    if config.loss.name == "real_uid":
        for path in ("real_alpha", "real_beta"):
            if not 0 < getattr(config.loss, path) < 1:
                raise ConfigError(
                    f"loss.{path} = {getattr(config.loss, path)}: expected a value strictly "
                    "between 0 and 1; to train without real images, use --config.loss.name=sid "
                    "--config.loss.alpha=0.5."
                )
    if needs_real_images(config) and not config.real.source:
        needs = f"loss.name = {config.loss.name!r}"
        if options.fake_score_scale:
            needs = f"adversarial.fake_score_scale = {options.fake_score_scale}"
        raise ConfigError(
            f"{needs} needs real images, but real.source is empty; set --config.real.source=... "
            f"({SOURCES}), or use a method without data, e.g. --config.loss.name=sim."
        )


def require_logits(config: schema.Config, network: schema.Network) -> None:
    """Raises if the network does not support the discriminator or real images.

    Raises:
      ConfigError: names the supported networks or the remedy.
    """
    name = type(network).__name__
    if config.adversarial.fake_score_scale and not network.has_logits:
        raise ConfigError(
            f"adversarial.fake_score_scale = {config.adversarial.fake_score_scale}: the "
            f"discriminator is the encoder of a U-Net (SongUNet, AdmUNet), and {name} has none "
            "(logits from a transformer's middle block are not implemented); set it to 0, or use "
            "loss.name = 'real_uid'."
        )
    if needs_real_images(config) and (network.condition.reads_prompts or network.of_latents):
        what = "with captions" if network.condition.reads_prompts else "as latents"
        raise ConfigError(
            f"{name} needs real images {what}, which are not supported yet; use a method without "
            "data, e.g. --config.loss.name=sim."
        )
