"""What a config says of a network: the base of each architecture's options, and of a user's own."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, NamedTuple

from flax import nnx

from simjax.networks.conditions import Classes, Conditioning


@dataclasses.dataclass
class Network:
    """A network's sizes: the fields of its subclasses, which config.json and the command line have.

    Attributes:
      module: what is built of the fields.
      is_stack: it is a stack of equal blocks, which one block's program runs (layers.scan_stack).
      of_latents: samples are an autoencoder's latents, not pixels.
      choices: names that a field may hold.
      has_logits: its modules give a discriminator's logits too (unet.UNet, with_logits).
      guided_channels: of a sample that guidance acts on, the first; None: all.
    """

    module: ClassVar[type[nnx.Module]]
    is_stack: ClassVar[bool] = False
    of_latents: ClassVar[bool] = False
    has_logits: ClassVar[bool] = False
    guided_channels: ClassVar[int | None] = None
    choices: ClassVar[Mapping[str, Collection[str]]] = {}
    learn_sigma = None  # whether variances are put out beside F; None: as its family does
    label_dim = 0  # of networks that have no such field; without annotations: no fields here
    augment_dim = 0

    @property
    def condition(self) -> Conditioning:
        """What samples are conditioned on."""
        return Classes(self.label_dim)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a sample."""
        return (self.resolution, self.resolution, self.image_channels)

    def build(self, *, out_channels: int, unroll: bool, **options: Any) -> nnx.Module:
        """F, freshly initialised.

        Args:
          out_channels: image_channels, or twice as many where variances are learned too.
          unroll: the program of a stack holds every block.
          options: remat, dtype and rngs.
        """
        of_stack = {"unroll": unroll} if self.is_stack else {}
        values = dataclasses.asdict(self) | of_stack | options
        values.pop("learn_sigma", None)  # which out_channels are of
        return self.module(**values, out_channels=out_channels)


@dataclasses.dataclass
class Own(Network):
    """What is known of a network that Python code brings (simjax.from_function); in no file."""

    resolution: int
    image_channels: int
    label_dim: int


class Description(NamedTuple):
    """What a denoiser is: D of a family (diffusion/families.py) around a network."""

    network: Network
    precondition: str
    sigma_data: float
