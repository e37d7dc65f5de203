"""CLIP score: agreement of images with their prompts.

    CLIP score = w max(cos(E_image, E_text), 0)

The CLIPScore paper uses w = 2.5 and the prefix "A photo depicts". Tables of text-to-image models,
torchmetrics and this file use w = 100 and no prefix; torchmetrics clips at 0 after averaging over
images, which differs only if some cosine is negative. Scores are comparable only for the same CLIP
network, usually openai/clip-vit-large-patch14.
Reference: CLIPScore, arXiv:2104.08718, section 3.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8
from PIL import Image

from simjax.errors import ConfigError
from simjax.evaluation.clip import aesthetic as aesthetic_head
from simjax.evaluation.clip.tokens import Tokenizer
from simjax.evaluation.statistics import require_finite
from simjax.networks.clip import Clip, Text
from simjax.porting.files import read_weights
from simjax.porting.files.foreign_file import refuse_nonfinite
from simjax.porting.maps import clip as clip_weights
from simjax.porting.maps import rules
from simjax.runtime import checkpoint, sharding
from simjax.typing import Array, Images, Params, typed

WEIGHT = 100.0  # w, see above
# RGB mean and std in [0, 1]: openai/CLIP, clip/clip.py, _transform.
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
BATCH = 64  # batch size, rounded up to a multiple of the number of devices; our choice

Bytes = UInt8[np.ndarray, "n h w c"]
Embeddings = Float[np.ndarray, "n d"]


class Embedder(NamedTuple):
    """A CLIP network that embeds raw images and prompts.

    Attributes:
      images: maps any number of uint8 images, RGB or grey, to embeddings.
      prompts: maps any number of prompts to embeddings and the number of truncated prompts.
      width: channels of an embedding.
      sha256: checksum of the parameters.
    """

    images: Callable[[Bytes], Embeddings]
    prompts: Callable[[Sequence[str]], tuple[Embeddings, int]]
    width: int
    sha256: str


def load_clip(folder: str | os.PathLike, *, batch: int = BATCH) -> Embedder:
    """Loads a transformers CLIPModel folder: config.json, weights, tokenizer.

    Raises:
      ConfigError: a file is missing, damaged or not CLIP's, or `tokenizers` is not installed.
    """
    if not os.path.isdir(folder):
        raise ConfigError(
            f"{folder} is not a folder; expected one of transformers' CLIPModel: config.json, "
            "weights, tokenizer. Download, for example, openai/clip-vit-large-patch14."
        )
    weights = read_weights.read(folder)
    refuse_nonfinite(weights.tensors, folder)
    try:
        sizes = clip_weights.describe(weights.config or {})
        graphdef, like = nnx.split(
            nnx.eval_shape(lambda: Clip(**sizes, dtype=jnp.float32, rngs=nnx.Rngs(0)))
        )
        params = rules.apply(clip_weights.RULES, weights.tensors, nnx.to_pure_dict(like))
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from error
    tokenizer = Tokenizer(folder, sizes["text"].length)
    _require_fit(folder, tokenizer, sizes["text"])
    embed = _embedders(graphdef, params, tokenizer, sizes["vision"].resolution, batch)
    return Embedder(*embed, sizes["projection"], checkpoint.params_sha256(params))


def scores(
    images: Bytes, prompts: Sequence[str], clip: Embedder, aesthetic: Params
) -> dict[str, Any]:
    """CLIP and aesthetic score of images, one prompt per image.

    Returns "clip_score" and "aesthetic", (n,); their means, "clip_score_mean" and
    "aesthetic_mean"; and "truncated", the number of truncated prompts.

    Args:
      clip: from load_clip.
      aesthetic: from aesthetic.load.

    Raises:
      ConfigError: unequal numbers of images and prompts, no images, or a CLIP network of another
        width than the aesthetic head's.
    """
    if len(images) != len(prompts) or not len(images):
        raise ConfigError(
            f"{len(images)} images and {len(prompts)} prompts; expected one prompt per image "
            "and at least one image."
        )
    of_prompts, truncated = clip.prompts(prompts)
    each = of_embeddings(clip.images(images), of_prompts, aesthetic)
    means = {f"{name}_mean": float(values.mean()) for name, values in each.items()}
    return each | means | {"truncated": truncated}


def of_embeddings(
    images: Embeddings, prompts: Embeddings | None, aesthetic: Params | None
) -> dict[str, Float[np.ndarray, "n"]]:
    """Per image, "clip_score" (with prompts) and "aesthetic" (with a head).

    Raises:
      ConfigError: embeddings are not finite, or have another width than the head's.
    """
    each = {}
    if prompts is not None:
        each["clip_score"] = clip_scores(images, prompts)
    if aesthetic is not None:
        each["aesthetic"] = np.asarray(aesthetic_head.aesthetic_scores(aesthetic, images))
    return each


@typed
def clip_scores(
    images: Float[np.ndarray, "n d"], texts: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "n"]:
    """100 max(cos(image, text), 0) per pair of embeddings, in float64.

    >>> texts = np.array([[1.0, 0.0], [1.0, 0.0]])
    >>> clip_scores(np.array([[3.0, 4.0], [-1.0, 0.0]]), texts).tolist()
    [60.0, 0.0]

    Raises:
      ConfigError: an embedding is not finite.
    """
    require_finite("embeddings", images, texts)
    images, texts = images.astype(np.float64), texts.astype(np.float64)
    lengths = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
    return WEIGHT * np.maximum((images * texts).sum(1) / lengths, 0)


@typed
def cropped(images: UInt8[np.ndarray, "n h w c"], resolution: int) -> UInt8[np.ndarray, "n r r 3"]:
    """Resizes the shorter side to `resolution` (PIL bicubic, antialiased), then centre-crops.

    The longer side and the offset of the crop are rounded down, as in transformers'
    CLIPImageProcessor; OpenAI's crop may start one pixel later if an odd number is cropped.

    >>> cropped(np.zeros((1, 10, 20, 1), np.uint8), 5).shape
    (1, 5, 5, 3)

    Raises:
      ConfigError: other than 1 or 3 channels.
    """
    height, width, channels = images.shape[1:]
    if channels not in (1, 3):
        raise ConfigError(f"images have {channels} channels; expected 1 (grey) or 3 (RGB).")
    shorter = min(height, width)
    height, width = (side * resolution // shorter for side in (height, width))
    top, left = ((side - resolution) // 2 for side in (height, width))
    out = np.empty((len(images), resolution, resolution, 3), np.uint8)
    for row, image in zip(out, np.broadcast_to(images, (*images.shape[:3], 3)), strict=True):
        whole = Image.fromarray(np.ascontiguousarray(image))
        resized = np.asarray(whole.resize((width, height), Image.Resampling.BICUBIC))
        row[:] = resized[top : top + resolution, left : left + resolution]
    return out


def normalised(images: UInt8[Array, "b h w 3"]) -> Images:
    """Input normalisation: (v / 255 - MEAN) / DEVIATION per RGB channel."""
    return (images.astype(jnp.float32) / 255 - jnp.array(MEAN)) / jnp.array(DEVIATION)


def _require_fit(folder: str | os.PathLike, tokenizer: Tokenizer, text: Text) -> None:
    """Raises if tokenizer and network differ in vocabulary or end token."""
    end = tokenizer.size - 1 if text.end is None else text.end
    if tokenizer.size > text.vocabulary or tokenizer.end != end:
        raise ConfigError(
            f"{folder}: the tokenizer has {tokenizer.size} tokens, the end token {tokenizer.end}, "
            f"but the network has {text.vocabulary}, the end token {end}; use tokenizer and "
            "weights of the same model."
        )


def _embedders(
    graphdef: nnx.GraphDef, params: Params, tokenizer: Tokenizer, resolution: int, batch: int
) -> tuple[Callable[[Bytes], Embeddings], Callable[[Sequence[str]], tuple[Embeddings, int]]]:
    """Embedder.images and Embedder.prompts: padded batches over local devices."""
    mesh = sharding.local_mesh()
    batch = sharding.rounded_up(batch, mesh)
    params = jax.device_put(params, sharding.replicated(mesh))

    jit = functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))

    @jit
    def image_program(params: Params, images: Array) -> Array:
        return nnx.merge(graphdef, params).embed_images(normalised(images))

    @jit
    def text_program(params: Params, ids: Array, mask: Array) -> Array:
        return nnx.merge(graphdef, params).embed_texts(ids, mask)

    def run(program: Callable[..., Array], *arrays: np.ndarray) -> Embeddings:
        rows = len(arrays[0])
        padded = [np.pad(x, [(0, batch - rows)] + [(0, 0)] * (x.ndim - 1)) for x in arrays]
        placed = jax.device_put(padded, sharding.batch_split(mesh))
        return np.asarray(program(params, *placed))[:rows]

    def embed_images(images: Bytes) -> Embeddings:
        parts = (cropped(images[part], resolution) for part in _parts(len(images), batch))
        return np.concatenate([run(image_program, part) for part in parts])

    def embed_prompts(prompts: Sequence[str]) -> tuple[Embeddings, int]:
        ids, mask, truncated = tokenizer(prompts)
        parts = _parts(len(prompts), batch)
        found = [run(text_program, ids[part], mask[part]) for part in parts]
        return np.concatenate(found), truncated

    return embed_images, embed_prompts


def _parts(rows: int, batch: int) -> Iterator[slice]:
    return (slice(start, start + batch) for start in range(0, max(rows, 1), batch))
