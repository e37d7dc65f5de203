"""The preconditioned denoiser D(xt; sigma, cond) = E[x0 | xt].

The only file that sets precision: float32 outside the network, the network's dtype inside.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from simjax.diffusion.precondition import Precondition
from simjax.networks.layers import Buffer, Gather
from simjax.typing import Array, Condition, Denoise, Float, Images, Params, PerExample


class Denoiser(nnx.Module):
    """A network F with preconditioning, coefficients in float32.

    D = c_skip xt + c_out F(c_in xt, c_noise, cond)
    """

    def __init__(self, network: nnx.Module, precondition: Precondition):
        self.network = network
        self.precondition = precondition

    def __call__(
        self,
        xt: Images,
        sigma: PerExample,
        cond: Condition,
        *,
        augment_labels: Float[Array, "b a"] | None = None,
        dropout_keys: Array | None = None,
        gather: Gather | None = None,
        with_logits: bool = False,
    ) -> Images | tuple[Images, Float[Array, "b h w"]]:
        """D, or (D, discriminator logits) if `with_logits` (unet.UNet).

        `gather` is for scanned blocks (layers.scan_stack); U-Nets take gathered parameters.
        """
        c_skip, c_out, c_in, c_noise = self.precondition(sigma)
        own = {} if gather is None else {"gather": gather}
        own |= {"with_logits": True} if with_logits else {}
        # float32 matmuls at full precision: no TF32, no bf16 passes.
        exact = "highest" if self.network.dtype == jnp.float32 else None
        with jax.default_matmul_precision(exact):
            found = self.network(
                c_in[:, None, None, None] * xt,
                c_noise,
                cond,
                augment_labels=augment_labels,
                dropout_keys=dropout_keys,
                **own,
            )
        residual, logits = found if with_logits else (found, None)
        residual = residual[..., : xt.shape[-1]].astype(jnp.float32)  # drop learned variances
        denoised = c_skip[:, None, None, None] * xt + c_out[:, None, None, None] * residual
        return (denoised, logits) if with_logits else denoised


def as_denoise(net: nnx.Module) -> tuple[Denoise, Params]:
    """Splits a module into a pure D(params, xt, sigma, cond) and parameters.

    Parameters are a nested dict. Constants (Buffer) are captured by the function: they are ported
    but not trained.

    Raises:
      ValueError: the module holds state other than nnx.Param and Buffer.

    >>> from simjax.diffusion import precondition
    >>> network = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    >>> denoise, params = as_denoise(Denoiser(network, precondition.edm))
    >>> sorted(params["network"])
    ['bias', 'kernel']
    """
    graphdef, params, buffers = nnx.split(net, nnx.Param, Buffer)
    # NumPy arrays are not tied to a mesh.
    buffers = jax.tree.map(
        lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf,
        nnx.to_pure_dict(buffers),
    )

    def denoise(params, xt, sigma, cond, **options):
        return nnx.merge(graphdef, params, buffers)(xt, sigma, cond, **options)

    return denoise, nnx.to_pure_dict(params)


Constants = dict[tuple[str, ...], np.ndarray]  # by path


def constants_of(weights: Params, params: Params) -> Constants:
    """The leaves of `weights` that are not parameters, by path."""
    trained = flatten_dict(params)
    every = flatten_dict(weights)
    return {path: np.asarray(leaf) for path, leaf in every.items() if path not in trained}


def with_constants(params: Params, constants: Constants) -> Params:
    """Merges parameters and constants; inverse of `constants_of`."""
    return unflatten_dict(flatten_dict(params) | constants)
