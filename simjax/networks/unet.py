"""The U-Net of DDPM++, NCSN++ and ADM, with two block styles.

Block names ("16x16_block0") follow the public checkpoints, so that parameter paths match.
References: EDM, arXiv:2206.00364, appendix F.2; DDPM++, arXiv:2011.13456; ADM, arXiv:2105.05233.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from simjax.networks import layers
from simjax.typing import Array, Float, Images, Labels, PerExample


@dataclasses.dataclass(frozen=True)
class Style:
    """Block options that differ between Song et al. and ADM.

    Args:
      epsilon: of group norm.
      skip_scale: factor after each residual sum.
      scale_and_shift: the embedding scales and shifts the second norm's output (ADM); else it
        shifts its input.
      head_channels: width of an attention head; None: a single head.
      decoder_attends_always: attention in every decoder block of an attention level; else in the
        last one only.
      project_resampled: 1x1 convolution on resampled skips even if the width is unchanged.
      init: initialiser of inner layers as a function of a scale (1 by default).
      init_qkv, init_last: scales for the attention's qkv and for the last layer of each branch.
    """

    epsilon: float
    skip_scale: float
    scale_and_shift: bool
    head_channels: int | None
    decoder_attends_always: bool
    project_resampled: bool
    init: Callable[[float], nnx.Initializer]
    init_qkv: float
    init_last: float


SONG = Style(
    epsilon=1e-6,
    skip_scale=math.sqrt(0.5),
    scale_and_shift=False,
    head_channels=None,
    decoder_attends_always=False,
    project_resampled=True,
    init=layers.glorot,
    init_qkv=math.sqrt(0.2),
    init_last=1e-5,
)
ADM = Style(
    epsilon=1e-5,
    skip_scale=1.0,
    scale_and_shift=True,
    head_channels=64,
    decoder_attends_always=True,
    project_resampled=False,
    init=layers.lecun,
    init_qkv=1.0,
    init_last=0.0,
)


class UNetBlock(nnx.Module):
    """Residual block conditioned on the noise level; optional resampling and attention."""

    def __init__(
        self,
        features_in: int,
        features: int,
        embedding: int,
        *,
        style: Style,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
        dropout: float,
        filter_taps: Sequence[float] = (1, 1),
        resample: str = "none",
        use_attention: bool = False,
    ):
        self.features_in = features_in
        self.style = style
        self.dropout = dropout
        self.filter_taps = tuple(filter_taps)
        self.resample = resample
        self.use_attention = use_attention

        def norm(channels: int) -> layers.GroupNorm:
            return layers.GroupNorm(channels, epsilon=style.epsilon, dtype=dtype)

        def conv(width_in: int, width: int, kernel: int, scale=1.0, **options) -> layers.Conv:
            kernel_init = style.init(scale)
            return layers.conv(
                width_in, width, kernel, init=kernel_init, rngs=rngs, dtype=dtype, **options
            )

        self.norm0 = norm(features_in)
        self.doubles = resample == "up" and layers.is_box(filter_taps)
        self.conv0 = conv(features_in, features, 3, doubles=self.doubles)
        width = 2 * features if style.scale_and_shift else features
        self.affine = layers.linear(embedding, width, init=style.init(1.0), rngs=rngs, dtype=dtype)
        self.norm1 = norm(features)
        self.conv1 = conv(features, features, 3, style.init_last)
        if features_in != features or (style.project_resampled and resample != "none"):
            self.skip = conv(features_in, features, 1)
        if use_attention:
            self.norm2 = norm(features)
            self.qkv = conv(features, 3 * features, 1, style.init_qkv)
            self.proj = conv(features, features, 1, style.init_last)

    def __call__(
        self, x: Images, embedding: Float[Array, "b e"], keep: layers.Masks | None
    ) -> Images:
        h = jax.nn.silu(self.norm0(x))
        h = self.conv0(h if self.doubles else self._resampled(h))
        h = jax.nn.silu(self._modulated(h, self.affine(embedding)[:, None, None]))
        h = self.conv1(layers.dropout(h, self.dropout, keep))
        skip = self._resampled(x)
        x = (h + (self.skip(skip) if hasattr(self, "skip") else skip)) * self.style.skip_scale
        if not self.use_attention:
            return x
        return (self._attended(x) + x) * self.style.skip_scale

    def _resampled(self, x: Images) -> Images:
        return RESAMPLE[self.resample](x, self.filter_taps)

    def _modulated(self, h: Images, affine: Float[Array, "b 1 1 e"]) -> Images:
        """Second norm with scale and shift, in float32.

        The gradient of `affine` is a sum over pixels, which is then in float32 too.
        """
        affine = affine.astype(jnp.float32)
        if not self.style.scale_and_shift:
            return self.norm1(h.astype(jnp.float32) + affine)
        scale, shift = jnp.split(affine, 2, axis=-1)
        return (self.norm1(h).astype(jnp.float32) * (1 + scale) + shift).astype(h.dtype)

    def _attended(self, x: Images) -> Images:
        b, height, width, c = x.shape
        head = self.style.head_channels or c
        qkv = self.qkv(self.norm2(x)).reshape(b, height * width, 3, c // head, head)
        mixed = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return self.proj(mixed.reshape(x.shape))


RESAMPLE = {
    "none": lambda x, taps: x,
    "down": layers.downsample,
    "up": layers.upsample,
}


class ResidualInput(nnx.Module):
    """NCSN++'s input pyramid: a convolution, then the filter at stride 2.

    The convolution pads for both.
    """

    def __init__(
        self,
        features_in: int,
        features: int,
        *,
        filter_taps: Sequence[float],
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
    ):
        self.filter_taps = tuple(filter_taps)
        padding = 1 + (len(filter_taps) - 1) // 2
        options = {"padding": padding, "init": layers.glorot(), "rngs": rngs, "dtype": dtype}
        self.conv = layers.conv(features_in, features, 3, **options)

    def __call__(self, x: Images) -> Images:
        return layers.decimate(self.conv(x), self.filter_taps)


class UNet(nnx.Module):
    """Encoder and decoder with skip connections.

    Subclasses define _embed(c_noise, labels, augment_labels), the float32 embedding of shape
    (b, embedding_width) that conditions every block.

    Args:
      style: block style.
      resolution: height and width of the images, a multiple of 2^(levels - 1).
      image_channels, out_channels: of input and output; they differ with learned variances.
      stem: width after the first convolution.
      widths: width per level, highest resolution first.
      blocks: residual blocks per level.
      attention_resolutions: resolutions with attention.
      dropout: rate inside each block, active if dropout keys are passed.
      embedding_width: width of `_embed`'s output.
      pyramid: feed a pyramid of downsampled inputs to the encoder (NCSN++).
      filter_taps: resampling filter.
      remat: rematerialisation policy, a key of layers.REMAT.
    """

    def __init__(
        self,
        *,
        style: Style,
        resolution: int,
        image_channels: int,
        out_channels: int,
        stem: int,
        widths: Sequence[int],
        blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float,
        remat: str,
        embedding_width: int,
        filter_taps: Sequence[float] = (1, 1),
        pyramid: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.dropout = dropout
        self.remat = remat
        init = {"rngs": rngs, "dtype": dtype}
        sizes = [resolution >> level for level in range(len(widths))]
        mask_shapes = []

        def block(size: int, features_in: int, features: int, **options) -> UNetBlock:
            mask_shapes.append((size, size, features))
            shared = {"style": style, "dropout": dropout, "filter_taps": filter_taps, **init}
            return UNetBlock(features_in, features, embedding_width, **shared, **options)

        self.enc, self.dec = nnx.Dict(), nnx.Dict()
        width, pyramid_width, skips = stem, image_channels, []
        for size, features in zip(sizes, widths, strict=True):
            if size == resolution:
                self.enc[f"{size}x{size}_conv"] = layers.conv(
                    image_channels, width, 3, init=style.init(1.0), **init
                )
            else:
                self.enc[f"{size}x{size}_down"] = block(size, width, width, resample="down")
            if size != resolution and pyramid:
                self.enc[f"{size}x{size}_aux_residual"] = ResidualInput(
                    pyramid_width, width, filter_taps=filter_taps, **init
                )
                pyramid_width = width
            skips.append(width)
            for index in range(blocks):
                attend = size in attention_resolutions
                name = f"{size}x{size}_block{index}"
                self.enc[name] = block(size, width, features, use_attention=attend)
                width = features
                skips.append(width)

        for size, features in reversed(list(zip(sizes, widths, strict=True))):
            if size == sizes[-1]:
                self.dec[f"{size}x{size}_in0"] = block(size, width, width, use_attention=True)
                self.dec[f"{size}x{size}_in1"] = block(size, width, width)
            else:
                self.dec[f"{size}x{size}_up"] = block(size, width, width, resample="up")
            first_attending = 0 if style.decoder_attends_always else blocks
            for index in range(blocks + 1):
                attend = size in attention_resolutions and index >= first_attending
                name = f"{size}x{size}_block{index}"
                self.dec[name] = block(size, width + skips.pop(), features, use_attention=attend)
                width = features
        # nnx.Dict sorts its keys when a module is split and merged: keep the execution order.
        self.enc_order, self.dec_order = tuple(self.enc), tuple(self.dec)
        self.mask_shapes = tuple(mask_shapes)  # in that order
        self.out_norm = layers.GroupNorm(width, epsilon=style.epsilon, dtype=dtype)
        self.out_conv = layers.conv(
            width, out_channels, 3, init=style.init(style.init_last), **init
        )

    def __call__(
        self,
        x: Images,
        c_noise: PerExample,
        labels: Labels,
        *,
        augment_labels: Float[Array, "b a"] | None = None,
        dropout_keys: Array | None = None,
        with_logits: bool = False,
    ) -> Images | tuple[Images, Float[Array, "b h w"]]:
        """F, or (F, discriminator logits) if `with_logits`.

        Logits are the mean over channels of the last encoder block, (b, h, w).
        """
        embedding = self._embed(c_noise, labels, augment_labels).astype(self.dtype)
        masks = iter(layers.keep_masks(dropout_keys, self.dropout, self.mask_shapes))
        x = pyramid = x.astype(self.dtype)
        skips = []
        for block in (self.enc[name] for name in self.enc_order):
            if isinstance(block, UNetBlock):
                x = self._run(block, [x], embedding, next(masks))
            elif isinstance(block, ResidualInput):
                x = skips[-1] = pyramid = (x + block(pyramid)) * math.sqrt(0.5)
                continue
            else:
                x = block(x)
            skips.append(x)
        logits = x.astype(jnp.float32).mean(-1)
        for block in (self.dec[name] for name in self.dec_order):
            parts = [x] if x.shape[-1] == block.features_in else [x, skips.pop()]
            x = self._run(block, parts, embedding, next(masks))
        x = self.out_conv(jax.nn.silu(self.out_norm(x)))
        return (x, logits) if with_logits else x

    def _run(
        self,
        block: UNetBlock,
        parts: list[Images],
        embedding: Float[Array, "b e"],
        keep: layers.Masks | None,
    ) -> Images:
        """Runs a block on concatenated inputs.

        Concatenation happens inside rematerialisation, since the parts are saved anyway.
        """

        def run(parts, embedding, keep):
            return block(jnp.concatenate(parts, axis=-1), embedding, keep)

        return layers.REMAT[self.remat](run)(parts, embedding, keep)
