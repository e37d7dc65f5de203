"""LAION aesthetic score: predicted human rating, about 1 to 10.

Five linear layers without activations (only dropout in training) on the L2-normalised image
embedding of openai/clip-vit-large-patch14. The "aesthetic score" of papers, SIM's included.
Reference: github.com/christophschuhmann/improved-aesthetic-predictor, its file
sac+logos+ava1-l14-linearMSE.pth. Called from score.py.
"""

import os
from itertools import pairwise

import jax
import jax.numpy as jnp
from jaxtyping import Float

from simjax.errors import ConfigError
from simjax.porting.files import read_weights
from simjax.porting.files.foreign_file import refuse_nonfinite
from simjax.porting.maps import rules
from simjax.porting.maps.clip import AESTHETIC_RULES
from simjax.typing import Array, Params, PerExample, typed

LAYERS = ("0", "2", "4", "6", "7")  # names in the file
WIDTHS = (768, 1024, 128, 64, 16, 1)


def load(path: str | os.PathLike) -> Params:
    """Loads the head from its .pth file: {layer: {kernel, bias}}.

    Raises:
      ConfigError: the file is missing, damaged, or of another network.
    """
    tensors = read_weights.read(path).tensors
    refuse_nonfinite(tensors, path)
    like = {
        name: {
            "kernel": jax.ShapeDtypeStruct(sizes, jnp.float32),
            "bias": jax.ShapeDtypeStruct(sizes[1:], jnp.float32),
        }
        for name, sizes in zip(LAYERS, pairwise(WIDTHS), strict=True)
    }
    try:
        return rules.apply(AESTHETIC_RULES, tensors, like)
    except ConfigError as error:
        raise ConfigError(
            f"{path}: {error}\nExpected the head sac+logos+ava1-l14-linearMSE.pth."
        ) from error


@typed
def aesthetic_scores(params: Params, embeddings: Float[Array, "b c"]) -> PerExample:
    """One score per image from ViT-L/14 embeddings, which are normalised first.

    Raises:
      ConfigError: embeddings of another width, so of another network.
    """
    require_width(embeddings.shape[1])
    x = normalised(embeddings)
    for name in LAYERS:
        x = jnp.matmul(x, params[name]["kernel"], precision="highest") + params[name]["bias"]
    return x[:, 0]


def require_width(width: int) -> None:
    """Raises unless the embedding width is that of ViT-L/14.

    >>> require_width(768)
    >>> require_width(512)
    Traceback (most recent call last):
    simjax.errors.ConfigError: embeddings have 512 channels, but the aesthetic head needs 768: ...

    Raises:
      ConfigError: another width than 768.
    """
    if width != WIDTHS[0]:
        raise ConfigError(
            f"embeddings have {width} channels, but the aesthetic head needs {WIDTHS[0]}: use "
            "openai/clip-vit-large-patch14."
        )


def normalised(embeddings: Float[Array, "b c"]) -> Float[Array, "b c"]:
    """L2-normalises each row; rows of zeros stay zero.

    >>> normalised(jnp.array([[3.0, 4.0], [0.0, 0.0]])).round(3).tolist()
    [[0.6..., 0.8...], [0.0, 0.0]]
    """
    length = jnp.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / jnp.where(length == 0, 1, length)
