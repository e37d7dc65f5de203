"""Array types with shapes, and `typed`, which checks them at trace time."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from beartype import BeartypeConf, beartype
from flax import struct
from jaxtyping import Bool, Float, Int, jaxtyped

Array = jax.Array | np.ndarray
Images = Float[Array, "b h w c"]  # NHWC, data units
Image = Float[Array, "h w c"]
PerExample = Float[Array, "b"]
Labels = Float[Array, "b k"]  # one-hot; k = 0 when the model is unconditional
Scalar = Float[Array, ""]
Step = Int[Array, ""]
Key = jax.Array  # jax.random.key(...), a typed key; scalar unless stated otherwise
Params = Any  # nested dict of arrays
Metrics = dict[str, Array]


@struct.dataclass
class Caption:
    """Text-encoder features of b captions of up to l tokens.

    Args:
      mask: True for tokens, False for padding.
      dropped: True for dropped captions, which the network replaces by its null embedding.
    """

    embedding: Float[Array, "b l c"]
    mask: Bool[Array, "b l"]
    dropped: Bool[Array, "b"]


Condition = Labels | Caption
Denoise = Callable[..., Images]  # (params, xt, sigma, cond, *, augment_labels, dropout_keys)

# PEP 484's numeric tower: an int is accepted for a float (sigma_max=80).
typed = jaxtyped(typechecker=beartype(conf=BeartypeConf(is_pep484_tower=True)))
