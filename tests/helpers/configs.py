"""Loads the repository's config files like the command line; small networks and configs."""

import dataclasses
import importlib.util
from pathlib import Path

from simjax import config

DIRECTORY = Path(__file__).parent.parent.parent / "configs"
TEACHER = config.SongUNet(  # fast to train and to write
    resolution=8,
    image_channels=1,
    label_dim=10,
    channels=8,
    channel_mult=(1,),
    blocks=1,
    attention_resolutions=(),
)
LARGER = dataclasses.replace(TEACHER, channels=32, channel_mult=(1, 2), attention_resolutions=(4,))
NCSNPP = dataclasses.replace(
    TEACHER, embedding="fourier", noise_channels=2, encoder="residual", filter_taps=(1, 3, 3, 1)
)
PARAMETERS = {  # of the official networks, without fixed constants
    "cifar10": 55_735_299,
    "cifar10_uncond": 55_733_891,
    "ffhq64": 61_805_571,
    "afhqv2_64": 61_805_571,
    "imagenet64": 295_899_267,
    "imagenet256_dit": 674_834_720,
    "imagenet256_sit": 674_834_720,
    "pixart512": 610_856_096,
}


def load(name: str, method: str | None = None) -> config.Config:
    path = DIRECTORY / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(method) if method else module.get_config()


def small() -> config.Config:
    """The digits config with a network that traces in a second."""
    options = load("digits")
    options.network.channels, options.network.channel_mult = 4, (1,)
    return options


def published(source, **fields) -> config.Config:
    """configs/cifar10.py for a small teacher and few samples; fields by dotted name."""
    options = load("cifar10")
    options.teacher.source = str(source)
    options.batch, options.grid = 8, 2
    options.evaluation = config.Evaluation(teacher_steps=(2,), batch=4)
    for path, value in fields.items():
        record, _, name = path.rpartition(".")
        setattr(config.get_field(options, record) if record else options, name, value)
    return options


def shrunk(network: config.Network) -> config.Network:
    """The smallest network of the same class with the same conditioning; fast to trace."""
    if isinstance(network, config.DiT | config.PixArt):
        return dataclasses.replace(network, resolution=4, width=16, depth=1, heads=2)
    channels = 64 if isinstance(network, config.AdmUNet) else 4  # ADM's channels per head
    sizes = {"channels": channels, "channel_mult": (1,), "blocks": 1, "attention_resolutions": ()}
    return dataclasses.replace(network, resolution=4, **sizes)
