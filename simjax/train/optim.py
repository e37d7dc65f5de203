"""Adam with the papers' settings, and the generator's exponential moving average.

References: SIM, arXiv:2410.16794, appendix B.2; SiD's training options; EDM, arXiv:2206.00364.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from simjax.typing import Array, Params, Scalar

GradientTransformation = optax.GradientTransformation

INFINITY_STANDS_FOR = 1e5  # SiD's official training loop: nan -> 0, +-inf -> +-1e5


def adam(
    *,
    steps: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    warmup_steps: int,
    final_lr: float,
    clip: float = 0.0,
) -> optax.GradientTransformation:
    """Adam with linear warm-up, cosine decay and non-finite gradients replaced.

    The learning rate warms up to `lr` and decays to final_lr * lr at step `steps`; final_lr = 1
    keeps it constant. Gradients are clipped elementwise to [-clip, clip]; 0: no clipping. With
    beta1 = 0 the first moment is the gradient itself and is not stored.
    """
    if beta1 == 0:
        scale = optax.scale_by_rms(beta2, eps, eps_in_sqrt=False, bias_correction=True)
    else:
        scale = optax.scale_by_adam(beta1, beta2, eps)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=lr / max(warmup_steps, 1),
        peak_value=lr,
        warmup_steps=warmup_steps,
        decay_steps=max(steps, warmup_steps + 1),
        end_value=final_lr * lr,
    )
    return optax.chain(
        finite_gradients(),
        *([optax.clip(clip)] if clip else []),
        scale,
        optax.scale_by_learning_rate(schedule if final_lr != 1 or warmup_steps else lr),
    )


def finite_gradients() -> optax.GradientTransformation:
    """Replaces nan by 0 and +-inf by +-1e5, elementwise.

    >>> updates, _ = finite_gradients().update(jnp.array([1.0, jnp.nan, -jnp.inf]), None)
    >>> updates.tolist()
    [1.0, 0.0, -100000.0]
    """
    finite = functools.partial(
        jnp.nan_to_num, nan=0.0, posinf=INFINITY_STANDS_FOR, neginf=-INFINITY_STANDS_FOR
    )
    return optax.stateless(lambda updates, params: jax.tree.map(finite, updates))


def ema_decay(
    images_seen: Array, batch: int, *, half_life_kimg: float, rampup_ratio: float
) -> Scalar:
    """EMA decay rate with EDM's ramp-up of the half-life.

    beta = 0.5^(batch / min(half_life, rampup_ratio * images_seen)), half_life in images; without
    ramp-up (rampup_ratio 0) beta = 0.5^(batch / half_life).

    Args:
      images_seen: before this step.

    >>> beta = ema_decay(jnp.array(10_000), 500, half_life_kimg=500.0, rampup_ratio=0.05)
    >>> print(beta)  # half-life 0.05 * 10 000 images = one batch
    0.5
    """
    half_life = 1000.0 * half_life_kimg
    if rampup_ratio:
        half_life = jnp.minimum(half_life, rampup_ratio * images_seen)
    return 0.5 ** (batch / jnp.maximum(half_life, 1e-8))


def ema_update(ema: Params, params: Params, beta: Scalar) -> Params:
    """EMA step: beta * ema + (1 - beta) * params.

    Computed in the EMA's precision.

    >>> ema_update({"w": jnp.array([1.0])}, {"w": jnp.array([3.0])}, 0.5)
    {'w': Array([2.], dtype=float32)}
    """
    return jax.tree.map(lambda old, new: beta * old + (1 - beta) * new, ema, params)
