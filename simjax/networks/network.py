"""Base class of network options, for built-in and user architectures."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, NamedTuple

from flax import nnx

from simjax.networks.conditions import Classes, Conditioning


@dataclasses.dataclass
class Network:
    """Options of a network; subclasses add fields, which become config fields.

    Attributes:
      module: the nnx.Module class built from the fields.
      is_stack: the network scans over equal blocks (layers.scan_stack).
      of_latents: samples are autoencoder latents instead of pixels.
      choices: allowed values, by field.
      has_logits: the module can also return discriminator logits (unet.UNet, with_logits).
      guided_channels: guidance acts on the first n channels of a sample; None: all.
    """

    module: ClassVar[type[nnx.Module]]
    is_stack: ClassVar[bool] = False
    of_latents: ClassVar[bool] = False
    has_logits: ClassVar[bool] = False
    guided_channels: ClassVar[int | None] = None
    choices: ClassVar[Mapping[str, Collection[str]]] = {}
    # Defaults for subclasses without such fields; unannotated, so that they are no fields here.
    learn_sigma = None  # whether the network also outputs variances; None: as its family
    label_dim = 0
    augment_dim = 0

    @property
    def condition(self) -> Conditioning:
        """The condition type."""
        return Classes(self.label_dim)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a sample."""
        return (self.resolution, self.resolution, self.image_channels)

    def build(self, *, out_channels: int, unroll: bool, **options: Any) -> nnx.Module:
        """Builds F with random parameters.

        Args:
          out_channels: image_channels, or twice as many with learned variances.
          unroll: unroll the scan over blocks.
          options: remat, dtype and rngs.
        """
        of_stack = {"unroll": unroll} if self.is_stack else {}
        values = dataclasses.asdict(self) | of_stack | options
        values.pop("learn_sigma", None)  # reflected in out_channels
        return self.module(**values, out_channels=out_channels)


@dataclasses.dataclass
class Own(Network):
    """Sizes of a user function's network (simjax.from_function); not serialisable."""

    resolution: int
    image_channels: int
    label_dim: int


class Description(NamedTuple):
    """A denoiser: network, family (diffusion/families.py), sigma_data."""

    network: Network
    precondition: str
    sigma_data: float
