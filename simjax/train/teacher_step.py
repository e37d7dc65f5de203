"""One pretraining step of a teacher: denoising score matching on real images.

Reference: EDM, arXiv:2206.00364, eq. 8 and appendix F.2 (augmentation).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from simjax.diffusion import noise
from simjax.losses import denoising
from simjax.train import health
from simjax.train.optim import GradientTransformation, ema_update
from simjax.train.state import TeacherState
from simjax.train.step import Augment
from simjax.typing import (
    Array,
    Condition,
    Denoise,
    Images,
    Key,
    Metrics,
    Params,
    PerExample,
    Scalar,
)


@dataclasses.dataclass(frozen=True)
class TeacherFns:
    """Functions of a pretraining step, chosen by runs/setup.py; constant during training."""

    denoise: Denoise
    weight: Callable[[PerExample], PerExample]
    draw_data: Callable[..., tuple[Images, Condition]]  # (key, *dataset)
    draw_sigma: Callable[[Key], PerExample]
    augment: Augment
    tx: GradientTransformation
    ema_decay: Callable[[Array], Scalar]  # step -> beta


def teacher_step(
    state: TeacherState, dataset: tuple[Any, ...], key: Key, *, fns: TeacherFns
) -> tuple[TeacherState, Metrics]:
    """One update on a batch drawn from `dataset`.

    Args:
      dataset: all images, class numbers and captions.
    """
    data_key, sigma_key, eps_key, dropout_key, augment_key = jax.random.split(key, 5)
    x0, cond = fns.draw_data(data_key, *dataset)
    x0, augment_labels = fns.augment(x0, jax.random.split(augment_key, x0.shape[0]))
    sigma = fns.draw_sigma(sigma_key)
    xt = noise.add_noise(x0, sigma, jax.random.normal(eps_key, x0.shape))
    dropout_keys = jax.random.split(dropout_key, x0.shape[0])

    def loss_fn(params: Params) -> Scalar:
        extra = {"augment_labels": augment_labels, "dropout_keys": dropout_keys}
        denoised = fns.denoise(params, xt, sigma, cond, **extra)
        return denoising.denoising_loss(x0, denoised, fns.weight(sigma)).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    updates, opt = fns.tx.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = ema_update(state.ema, params, fns.ema_decay(state.step))
    metrics = {"teacher/loss": loss} | health.gradients("teacher", grads)
    return state.replace(step=state.step + 1, params=params, ema=ema, opt=opt), metrics
