"""One pretraining step of a teacher: denoising score matching on real images.

Reference: EDM, arXiv:2206.00364, eq. 8, without augmentation.
"""

import dataclasses
from collections.abc import Callable

import jax
import optax

from simjax.diffusion import noise
from simjax.losses import denoising
from simjax.train import health
from simjax.train.optim import GradientTransformation, ema_update
from simjax.train.state import TeacherState
from simjax.typing import Array, Denoise, Images, Key, Labels, Metrics, Params, PerExample, Scalar


@dataclasses.dataclass(frozen=True)
class TeacherFns:
    """The functions that build.py chose; constant while training."""

    denoise: Denoise
    weight: Callable[[PerExample], PerExample]
    draw_data: Callable[[Key], tuple[Images, Labels]]
    draw_sigma: Callable[[Key], PerExample]
    tx: GradientTransformation
    ema_decay: Callable[[Array], Scalar]  # step -> beta


def teacher_step(state: TeacherState, key: Key, *, fns: TeacherFns) -> tuple[TeacherState, Metrics]:
    """One update on a fresh batch of images, noise levels and noise."""
    data_key, sigma_key, eps_key, dropout_key = jax.random.split(key, 4)
    x0, labels = fns.draw_data(data_key)
    sigma = fns.draw_sigma(sigma_key)
    xt = noise.add_noise(x0, sigma, jax.random.normal(eps_key, x0.shape))
    dropout_keys = jax.random.split(dropout_key, x0.shape[0])

    def loss_fn(params: Params) -> Scalar:
        denoised = fns.denoise(params, xt, sigma, labels, dropout_keys=dropout_keys)
        return denoising.denoising_loss(x0, denoised, fns.weight(sigma)).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    updates, opt = fns.tx.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = ema_update(state.ema, params, fns.ema_decay(state.step))
    metrics = {"teacher/loss": loss} | health.gradients("teacher", grads)
    return state.replace(step=state.step + 1, params=params, ema=ema, opt=opt), metrics
