"""DiT: a transformer on patches whose norms are told time and class (adaLN-Zero).

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
    Patches,
    SelfAttention,
    TimeEmbedding,
    Tokens,
    Told,
    as_images,
    gated_sum,
    linear,
    told_norm,
)
from simjax.typing import Array, Float, Images, Labels, PerExample

MLP_RATIO = 4  # hidden width over width (DiT)


class DiTBlock(nnx.Module):
    """Attention and a perceptron; time and class scale, shift and gate both."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        init = {"rngs": rngs, "dtype": dtype}
        self.attention = SelfAttention(width, heads, **init)
        self.mlp = Mlp(width, MLP_RATIO * width, width, **init)
        self.modulation = linear(width, 6 * width, init=ZEROS, rngs=rngs, dtype=jnp.float32)

    def __call__(self, x: Tokens, told: Told) -> Tokens:
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(self.modulation(told), 6, axis=-1)
        x = gated_sum(x, gate1, self.attention(told_norm(x, shift1, scale1)))
        return gated_sum(x, gate2, self.mlp(told_norm(x, shift2, scale2)))


class DiTModule(nnx.Module):
    """F(x, c_noise, labels) of the preconditioned denoiser; c_noise is a DDPM time step.

    Labels of zeros stand for no class: the embedding that training put in place of dropped classes.

    Args:
      resolution: height and width of x, a multiple of `patch`; latents have 1/8 of their images'.
      image_channels, out_channels: of input and output; they differ with learned variances.
      label_dim: classes, 0 for unconditional.
      patch: height and width of what one token stands for.
      width, depth, heads: of the transformer.
      time_steps: of the frequencies of time's embedding; 128, and 127 in diffusers.
      remat: what the backward pass recomputes, a name in layers.REMAT.
      unroll: the program holds every block instead of one.
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
        """Nothing is dropped out: DiT has no dropout, so dropout_keys draw nothing."""
        told = jax.nn.silu(self.time(c_noise) + self._of_class(labels))[:, None]
        tokens = layers.scan_stack(
            self.blocks,
            lambda block, tokens: block(tokens, told),
            self.patches(x),
            gather=gather,
            remat=self.remat,
            unroll=self.unroll,
        )
        shift, scale = jnp.split(self.out_modulation(told), 2, axis=-1)
        return as_images(self.out(told_norm(tokens, shift, scale)), patch=self.patch)

    def _of_class(self, labels: Labels) -> Float[Array, "b c"]:
        """The class's row of the table; its last row where there is no class."""
        none = 1 - labels.sum(1, keepdims=True)
        rows = jnp.concatenate([labels, none], axis=1)
        return jnp.dot(rows, self.classes[...], precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass
class DiT(Network):
    """The transformer of DiT on latents; defaults are DiT-XL/2 for 256 pixels (DiT table 1)."""

    module: ClassVar = DiTModule
    is_stack: ClassVar = True
    of_latents: ClassVar = True
    guided_channels: ClassVar = 3  # of 4: so the official code of DiT and SiT samples
    resolution: int = 32  # of latents: 1/8 of the images'
    image_channels: int = 4
    label_dim: int = 1000
    patch: int = 2
    width: int = 1152
    depth: int = 28
    heads: int = 16
    time_steps: int = 128  # of the embedding's frequencies; 127 where weights came from diffusers
    learn_sigma: bool | None = None  # variances are put out too, which D drops; None: its family
