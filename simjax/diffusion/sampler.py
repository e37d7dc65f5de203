"""Samplers: solvers of the probability-flow ODE and of SiT's SDE.

References: EDM, arXiv:2206.00364: eq. 4, table 1, algorithms 1 and 2; DPM-Solver++,
arXiv:2211.01095; SiT, arXiv:2401.08740. Each solver is one scan over its NFE, so a compiled program
contains the denoiser once. Called from models/samplers.py.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simjax.diffusion import schedule
from simjax.typing import Array, Float, Images, PerExample, Step, typed


class Path(NamedTuple):
    """Noise level sigma(t), its inverse, and scale s(t).

    The ODE's state is s xt. Each function maps (n,) to (n,). At the end, t = 0, sigma is 0 and s 1.
    """

    sigma: Callable[[PerExample], PerExample]
    time: Callable[[PerExample], PerExample]
    scale: Callable[[PerExample], PerExample]


PATHS = {  # EDM table 1
    "edm": Path(lambda t: t, lambda sigma: sigma, jnp.ones_like),
    "vp": Path(schedule.vp, schedule.vp_time, lambda t: 1 / jnp.sqrt(1 + schedule.vp(t) ** 2)),
    "ve": Path(jnp.sqrt, jnp.square, jnp.ones_like),
}


class Churn(NamedTuple):
    """Stochasticity of EDM's algorithm 2: S_churn, S_min, S_max and S_noise."""

    amount: float = 0.0
    low: float = 0.0
    high: float = math.inf
    inflation: float = 1.0


DrawNoise = Callable[[Step], Images]
Stages = Float[np.ndarray, "stages 3"]  # rows of (node, previous, current)
# A Runge-Kutta tableau. Each row is one evaluation within a step of width h from t: the slope is
# computed at t + node h, then state = start of step + h (previous * last slope + current * slope).
EULER: Stages = np.array([[0.0, 0.0, 1.0]])


def heun_stages(alpha: float = 1.0) -> Stages:
    """Second-order tableaus of EDM's appendix D.2.

    alpha = 1 is Heun's method, 1/2 the midpoint rule.

    >>> heun_stages().tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.5, 0.5]]
    """
    weight = 1 / (2 * alpha)
    return np.array([[0.0, 0.0, alpha], [alpha, 1 - weight, weight]])


def heun(
    denoise: Callable[..., Images],
    z: Images,
    sigmas: Float[Array, "steps"],
    *,
    alpha: float = 1.0,
    path: Path = PATHS["edm"],
    churn: Churn = Churn(),
    draw_noise: DrawNoise | None = None,
) -> Images:
    """`integrate` with Heun's method, NFE 2 * steps - 1.

    >>> def denoise(xt, sigma):  # E[x0 | xt] of N(0, 1) data
    ...     return xt / (1 + sigma[:, None, None, None] ** 2)
    >>> x0 = heun(denoise, jnp.ones((1, 1, 1, 1)), schedule.karras_ladder(40))
    >>> round(x0.item(), 2)  # the exact solution is 1: the ODE maps N(0, 80^2) to N(0, 1)
    1.01
    """
    options = {"stages": heun_stages(alpha), "path": path, "churn": churn, "draw_noise": draw_noise}
    return integrate(denoise, z, sigmas, **options)


@typed
def integrate(
    denoise: Callable[..., Images],
    z: Images,
    sigmas: Float[Array, "steps"],
    *,
    stages: Stages,
    path: Path = PATHS["edm"],
    churn: Churn = Churn(),
    draw_noise: DrawNoise | None = None,
) -> Images:
    """Integrates the probability-flow ODE from sigmas[0] to 0; returns x0, data units.

    The state is x = s(t) xt, and  dx/dt = s' xt + s sigma' (xt - D(xt; sigma)) / sigma. The last
    step, to sigma = 0, is an Euler step.

    Args:
      denoise: (xt, sigma (b,)) -> D(xt; sigma), data units.
      z: N(0, I); the start is xt = sigmas[0] * z.
      sigmas: descending positive noise levels; a last step to sigma = 0 is implied.
      stages: EULER or heun_stages(alpha).
      path: time parametrisation and scale of the ODE, an entry of PATHS.
      churn: algorithm 2's stochasticity; amount 0 is deterministic.
      draw_noise: step index -> N(0, I) shaped like z; needed when churn.amount > 0.
    """
    if churn.amount and draw_noise is None:
        raise ValueError("integrate: churn.amount > 0 needs draw_noise.")
    start = sigmas[0] * z

    def evaluate(carry: tuple[Images, Images, Images], row: _Evaluation) -> tuple:
        xt, begin, previous = carry
        if churn.amount:  # row.noise = 0 at the second evaluation of a step
            xt = xt + row.noise * draw_noise(row.step)
        begin = jnp.where(row.opens, row.scale * xt, begin)
        denoised = denoise(xt, jnp.full(xt.shape[0], row.sigma, xt.dtype))
        slope = row.drift * xt + row.pull * (xt - denoised)
        x = begin + row.previous * previous + row.current * slope
        return (x / row.scale_after, begin, slope), None

    rows = _evaluations(sigmas, stages, path, churn)
    # `begin` and `previous` have no effect in the first row; any initial value works.
    (xt, _, _), _ = jax.lax.scan(evaluate, (start, start, start), rows)
    return xt


@typed
def dpm_solver(denoise: Callable[..., Images], z: Images, sigmas: Float[Array, "steps"]) -> Images:
    """Samples from sigmas[0] to 0 with DPM-Solver++(2M), one NFE per step.

    With lambda = -ln sigma, h = lambda_next - lambda and r = h_before / h (arXiv:2211.01095,
    algorithm 2, in sigma-space, where alpha = 1):

        D = (1 + 1 / (2 r)) D(xt) - 1 / (2 r) D_before,     xt_next = xt / e^h + (1 - 1 / e^h) D

    The first step and the last (to sigma = 0) use D(xt) alone. Arguments as in `integrate`.
    """
    shrink = jnp.append(sigmas[1:], 0) / sigmas  # e^-h
    h = -jnp.log(shrink)
    beyond = h[1:-1] / (2 * h[:-2])  # 1 / (2 r), except for the first and last step
    beyond = jnp.concatenate([jnp.zeros(1), beyond, jnp.zeros(1)])[: len(sigmas)]

    def evaluate(carry: tuple[Images, Images], row: tuple[Array, Array, Array]) -> tuple:
        xt, before = carry
        sigma, shrink, beyond = row
        denoised = denoise(xt, jnp.full(xt.shape[0], sigma, xt.dtype))
        ahead = denoised + beyond * (denoised - before)
        return (shrink * xt + (1 - shrink) * ahead, denoised), None

    start = sigmas[0] * z
    (xt, _), _ = jax.lax.scan(evaluate, (start, start), (sigmas, shrink, beyond))
    return xt


@typed
def euler(denoise: Callable[..., Images], z: Images, sigmas: Float[Array, "steps"]) -> Images:
    """`integrate` with Euler's method, one NFE per step; DDIM in sigma-space.

    For a flow it equals Euler's method in time (FlowMatchEuler). The step is a weighted mean,
    xt_next = s xt + (1 - s) D with s = sigma_next / sigma, which keeps float32 accuracy at
    sigma = 999.
    """
    shrink = jnp.append(sigmas[1:], 0) / sigmas

    def evaluate(xt: Images, row: tuple[Array, Array]) -> tuple[Images, None]:
        sigma, shrink = row
        denoised = denoise(xt, jnp.full(xt.shape[0], sigma, xt.dtype))
        return shrink * xt + (1 - shrink) * denoised, None

    xt, _ = jax.lax.scan(evaluate, sigmas[0] * z, (sigmas, shrink))
    return xt


@typed
def flow_sde(
    denoise: Callable[..., Images],
    z: Images,
    sigmas: Float[Array, "steps"],
    *,
    draw_noise: DrawNoise,
) -> Images:
    """Euler-Maruyama on SiT's SDE from sigmas[0] to 0, one NFE per step.

    The state is t xt = t x0 + (1 - t) eps at t = 1 / (1 + sigma). Its velocity v = D - eps and its
    score s = -eps / (1 - t) give, with the diffusion w = 1 - t of arXiv:2401.08740,

        drift v + w s = D - 2 eps,    noise sqrt(2 w dt),    eps = (xt - D) / sigma

    The last step, to sigma = 0, adds no noise. Arguments as in `integrate`.
    """
    t = 1 / (1 + sigmas)
    width = jnp.append(t[1:], 1) - t
    noise = jnp.sqrt(2 * (1 - t) * width).at[-1].set(0)

    def evaluate(state: Images, row: tuple[Array, ...]) -> tuple[Images, None]:
        step, sigma, t, width, noise = row
        xt = state / t
        denoised = denoise(xt, jnp.full(xt.shape[0], sigma, xt.dtype))
        drift = denoised - 2 * (xt - denoised) / sigma
        return state + width * drift + noise * draw_noise(step), None

    rows = (jnp.arange(len(sigmas)), sigmas, t, width, noise)
    state, _ = jax.lax.scan(evaluate, sigmas[0] * t[0] * z, rows)
    return state


class Solver(NamedTuple):
    """A sampling function (denoise, z, sigmas, **options) and its NFE.

    >>> [SOLVERS[name].evaluations(18) for name in ("heun", "euler")]
    [35, 18]
    """

    sample: Callable[..., Images]
    evaluations: Callable[[int], int]  # steps -> NFE
    options: tuple[str, ...] = ()  # options of `sample`: churn, draw_noise
    ladder: str = ""  # the required key of schedule.LADDERS; empty: the family's ladder


SOLVERS = {
    "heun": Solver(heun, lambda steps: 2 * steps - 1, ("churn", "draw_noise")),
    "euler": Solver(euler, lambda steps: steps),
    "dpm_solver": Solver(dpm_solver, lambda steps: steps),
    "flow_sde": Solver(flow_sde, lambda steps: steps, ("draw_noise",), ladder="flow_sde"),
}


class _Evaluation(NamedTuple):
    """Precomputed constants of each evaluation; every field has shape (NFE,)."""

    step: Array  # index of the step
    opens: Array  # True at the first evaluation of a step
    noise: Array  # standard deviation of the noise added to xt first, data units
    sigma: Array
    scale: Array  # s
    drift: Array  # s'
    pull: Array  # s sigma' / sigma
    previous: Array  # h times the weights of `Stages`
    current: Array
    scale_after: Array  # s at the time of the new state


def _evaluations(sigmas: Array, stages: Stages, path: Path, churn: Churn) -> _Evaluation:
    """Constants for steps - 1 steps with `stages`, then an Euler step."""
    steps = sigmas.shape[0]
    gamma = min(churn.amount / steps, math.sqrt(2) - 1)  # upper bound in algorithm 2
    raised = sigmas * jnp.where((churn.low <= sigmas) & (sigmas <= churn.high), 1 + gamma, 1)
    noise = churn.inflation * jnp.sqrt(raised**2 - sigmas**2)
    begin = path.time(raised)
    width = jnp.append(path.time(sigmas[1:]), 0) - begin

    table = np.concatenate([np.tile(stages, (steps - 1, 1)), EULER])
    step = np.repeat(np.arange(steps), len(stages))[: len(table)]
    opens = table[:, 0] == 0
    node, previous, current = width[step] * table.T.astype(sigmas.dtype)
    t = begin[step] + node
    sigma, sigma_slope = jax.jvp(path.sigma, (t,), (jnp.ones_like(t),))
    scale, drift = jax.jvp(path.scale, (t,), (jnp.ones_like(t),))
    return _Evaluation(
        step=jnp.asarray(step),
        opens=jnp.asarray(opens),
        noise=jnp.where(opens, noise[step], 0),
        sigma=sigma,
        scale=scale,
        drift=drift,
        pull=scale * sigma_slope / sigma,
        previous=previous,
        current=current,
        scale_after=path.scale(begin[step] + previous + current),
    )
