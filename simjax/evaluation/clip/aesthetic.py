"""LAION's aesthetic score: how much people would like an image, about 1 to 10, by its CLIP vector.

Five linear layers with nothing between them but dropout in training, on the L2-normalised embedding
of openai/clip-vit-large-patch14. Papers mean this head by "aesthetic score", SIM's among them.
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

LAYERS = ("0", "2", "4", "6", "7")  # as the file numbers them
WIDTHS = (768, 1024, 128, 64, 16, 1)


def load(path: str | os.PathLike) -> Params:
    """The head's parameters, {layer: {kernel, bias}}, from its .pth file.

    Raises:
      ConfigError: the file is missing, damaged, or of another head.
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
    """One score an image, of ViT-L/14's embeddings; a vector's length does not matter.

    Raises:
      ConfigError: embeddings of another network.
    """
    require_width(embeddings.shape[1])
    x = normalised(embeddings)
    for name in LAYERS:
        x = jnp.matmul(x, params[name]["kernel"], precision="highest") + params[name]["bias"]
    return x[:, 0]


def require_width(width: int) -> None:
    """Refuses the embeddings of networks that the head is not for, by their width.

    Raises:
      ConfigError: another width than ViT-L/14's.
    """
    if width != WIDTHS[0]:
        raise ConfigError(
            f"embeddings of {width} numbers, but the aesthetic head reads {WIDTHS[0]}: those of "
            "openai/clip-vit-large-patch14."
        )


def normalised(embeddings: Float[Array, "b c"]) -> Float[Array, "b c"]:
    """Each of length 1; zeros stay."""
    length = jnp.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / jnp.where(length == 0, 1, length)
