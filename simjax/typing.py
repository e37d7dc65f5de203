"""Names for the arrays that flow through simjax, and `typed`, which checks them while tracing."""

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
Key = jax.Array  # jax.random.key(...), typed key, scalar unless said otherwise
Params = Any  # nested dict of arrays
Metrics = dict[str, Array]


@struct.dataclass
class Caption:
    """What a text encoder made of b captions of up to l tokens.

    Args:
      mask: which tokens are real.
      dropped: captions that count as none; the network's own null embedding stands for them.
    """

    embedding: Float[Array, "b l c"]
    mask: Bool[Array, "b l"]
    dropped: Bool[Array, "b"]


Condition = Labels | Caption
Denoise = Callable[..., Images]  # (params, xt, sigma, cond, *, augment_labels, dropout_keys)

# An int may stand for a float (sigma_max=80), as in the signatures of PEP 484.
typed = jaxtyped(typechecker=beartype(conf=BeartypeConf(is_pep484_tower=True)))
