"""Adding noise, and the weights w(sigma) of the losses. Arrays in, arrays out."""

from collections.abc import Callable

import jax.numpy as jnp

from simjax.typing import Images, PerExample, typed


@typed
def add_noise(x0: Images, sigma: PerExample, eps: Images) -> Images:
    """xt = x0 + sigma eps, the one noising rule of simjax."""
    return x0 + sigma[:, None, None, None] * eps


@typed
def uniform_weight(sigma: PerExample) -> PerExample:
    """w = 1."""
    return jnp.ones_like(sigma)


@typed
def edm_weight(sigma: PerExample, *, sigma_data: float = 0.5) -> PerExample:
    """EDM's lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (table 1)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


@typed
def score_weight(sigma: PerExample) -> PerExample:
    """1 / sigma^2: VP's and VE's, who weigh errors of the noise alike (EDM table 1)."""
    return 1 / sigma**2


@typed
def one_minus_u_weight(sigma: PerExample) -> PerExample:
    """1 / (1 + sigma) = 1 - u, u the time of a flow: SiD-DiT's default (arXiv:2509.25127)."""
    return 1 / (1 + sigma)


@typed
def one_minus_u_squared_weight(sigma: PerExample) -> PerExample:
    """(1 - u)^2, SiD-DiT's other."""
    return 1 / (1 + sigma) ** 2


@typed
def inverse_u_weight(sigma: PerExample) -> PerExample:
    """(1 + sigma) / sigma = 1 / u (SiD-DiT)."""
    return (1 + sigma) / sigma


@typed
def snr_root_weight(sigma: PerExample) -> PerExample:
    """1 / sigma (SiD-DiT); its square is `score_weight`."""
    return 1 / sigma


@typed
def gvp_weight(sigma: PerExample) -> PerExample:
    """(pi / 2)^2 (1 + sigma^2) / sigma^2: errors of SiT's GVP velocity count alike."""
    return (jnp.pi / 2) ** 2 * (1 + 1 / sigma**2)


@typed
def flow_weight(sigma: PerExample) -> PerExample:
    """((1 + sigma) / sigma)^2: errors of a flow's velocity eps - x0 count alike."""
    return ((1 + sigma) / sigma) ** 2


Weight = Callable[[PerExample], PerExample]
WEIGHTS: dict[str, Weight] = {
    "uniform": uniform_weight,
    "edm": edm_weight,
    "score": score_weight,
    "flow": flow_weight,
    "gvp": gvp_weight,
    "one_minus_u": one_minus_u_weight,
    "one_minus_u_squared": one_minus_u_squared_weight,
    "inverse_u": inverse_u_weight,
    "snr_root": snr_root_weight,
}
