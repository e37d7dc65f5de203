"""DiT: a transformer on patches, conditioned by adaLN-Zero.

Reference: DiT, arXiv:2212.09748, section 3.2 and table 1.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from simjax.networks import layers
from simjax.networks.network import Network
from simjax.networks.transformer import (
    NORMAL,
    ZEROS,
    Mlp,
    Modulation,
    Patches,
    SelfAttention,
    TimeEmbedding,
    Tokens,
    ada_norm,
    as_images,
    gated_sum,
    linear,
)
from simjax.typing import Array, Float, Images, Labels, PerExample

MLP_RATIO = 4  # hidden width over width (DiT)


class DiTBlock(nnx.Module):
    """Attention and MLP, each with shift, scale and gate (adaLN-Zero)."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        init = {"rngs": rngs, "dtype": dtype}
        self.attention = SelfAttention(width, heads, **init)
        self.mlp = Mlp(width, MLP_RATIO * width, width, **init)
        self.modulation = linear(width, 6 * width, init=ZEROS, rngs=rngs, dtype=jnp.float32)

    def __call__(self, x: Tokens, cond: Modulation) -> Tokens:
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(self.modulation(cond), 6, axis=-1)
        x = gated_sum(x, gate1, self.attention(ada_norm(x, shift1, scale1)))
        return gated_sum(x, gate2, self.mlp(ada_norm(x, shift2, scale2)))


class DiTModule(nnx.Module):
    """F(x, c_noise, labels) of the preconditioned denoiser.

    c_noise is a DDPM time step, or the time of a flow. All-zero labels select the learned
    null-class embedding.

    Args:
      resolution: height and width of x, a multiple of `patch`; 1/8 of the image size for latents.
      image_channels, out_channels: of input and output; they differ with learned variances.
      label_dim: number of classes, 0 for unconditional.
      patch: height and width of a patch, one token each.
      width, depth, heads: of the transformer.
      time_steps: denominator in the time embedding's frequencies; 128, in diffusers 127.
      remat: rematerialisation policy, a key of layers.REMAT.
      unroll: unroll the scan over blocks.
    """

    def __init__(
        self,
        *,
        resolution: int,
        image_channels: int,
        out_channels: int,
        label_dim: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        time_steps: int,
        remat: str,
        unroll: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.patch, self.remat, self.unroll = dtype, patch, remat, unroll
        self.patches = Patches(
            image_channels, width, resolution=resolution, patch=patch, rngs=rngs, dtype=dtype
        )
        self.time = TimeEmbedding(width, steps=time_steps, rngs=rngs)
        self.classes = nnx.Param(NORMAL(rngs.params(), (label_dim + 1, width)))
        self.blocks = layers.stacked(
            lambda rngs: DiTBlock(width, heads, rngs=rngs, dtype=dtype), depth, rngs
        )
        closing = {"init": ZEROS, "rngs": rngs}
        self.out_modulation = linear(width, 2 * width, dtype=jnp.float32, **closing)
        self.out = linear(width, patch**2 * out_channels, dtype=dtype, **closing)

    def __call__(
        self,
        x: Images,
        c_noise: PerExample,
        labels: Labels,
        *,
        augment_labels: None = None,
        dropout_keys: Array | None = None,
        gather: layers.Gather | None = None,
    ) -> Images:
        """The output F. DiT has no dropout: dropout_keys are ignored."""
        cond = jax.nn.silu(self.time(c_noise) + self._of_class(labels))[:, None]
        tokens = layers.scan_stack(
            self.blocks,
            lambda block, tokens: block(tokens, cond),
            self.patches(x),
            gather=gather,
            remat=self.remat,
            unroll=self.unroll,
        )
        shift, scale = jnp.split(self.out_modulation(cond), 2, axis=-1)
        return as_images(self.out(ada_norm(tokens, shift, scale)), patch=self.patch)

    def _of_class(self, labels: Labels) -> Float[Array, "b c"]:
        """Class embedding; the last row of the table is the null class."""
        none = 1 - labels.sum(1, keepdims=True)
        rows = jnp.concatenate([labels, none], axis=1)
        return jnp.dot(rows, self.classes[...], precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass
class DiT(Network):
    """Options of DiT and SiT; defaults are DiT-XL/2, 256 pixels.

    >>> DiT().shape  # latents of 256 x 256 images
    (32, 32, 4)
    """

    module: ClassVar = DiTModule
    is_stack: ClassVar = True
    of_latents: ClassVar = True
    guided_channels: ClassVar = 3  # of 4, as in the official sampling code of DiT and SiT
    resolution: int = 32  # of latents: 1/8 of the images'
    image_channels: int = 4
    label_dim: int = 1000
    patch: int = 2
    width: int = 1152
    depth: int = 28
    heads: int = 16
    time_steps: int = 128  # in the time embedding's frequencies; 127 for weights from diffusers
    learn_sigma: bool | None = None  # also outputs variances, which D drops; None: as the family
