"""Training runs through distill_step against SiD's and Diff-Instruct's training loops.

Compared are losses, gradient norms, parameter norms and EMA factors of every iteration, and the
final parameters. Attention key biases are excluded: their gradient is rounding noise, which Adam
scales to steps of the size of the learning rate.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from simjax.losses import diff_instruct, sid
from simjax.train import optim, state, step
from simjax.train.accumulate import accumulated_grad
from simjax.train.update import Constants, Draws, Update
from tests.helpers import official

SERIES, PARAM_L2, EMA_BETA = 1e-3, 1e-5, 1e-5  # relative, relative, absolute
FINAL, FINAL_SHARE = 5e-5, 0.999  # absolute, for this share of the entries
ACCUMULATION, ACCUMULATION_GRAD = 1e-5, 1e-4  # our choice: float32 sums in another order
ROLES = {"fake": "fake_score", "gen": "generator", "ema": "ema"}


class Run(NamedTuple):
    """A recorded run, as arguments of distill_step."""

    network: official.Network
    fns: step.StepFns
    updates: list[Update]
    hyper: dict[str, Any]
    draws: list[tuple[Draws, Draws]]  # fake score's and generator's, per iteration


def sid_run(recording) -> Run:
    hyper = recording.json("hyper")

    def loss(x0, d_teacher, d_fake, sigma):
        scale = jnp.full_like(sigma, hyper["lsg"])
        return sid.generator_loss(x0, d_teacher, d_fake, scale, alpha=float(hyper["alpha"]))

    def generator_sigma(i):
        return official.karras(recording["in/gen_rnd_t"][i], hyper, hyper["tmax"])

    return _run(recording, loss, hyper["ls"], generator_sigma)


def diff_instruct_run(recording) -> Run:
    hyper = recording.json("hyper")

    def loss(x0, d_teacher, d_fake, sigma):
        scale = jnp.full_like(sigma, hyper["ls"])
        return diff_instruct.generator_loss(x0, d_teacher, d_fake, scale)

    def generator_sigma(i):
        return official.lognormal(recording["in/gen_rnd_normal"][i], hyper)

    return _run(recording, loss, hyper["sgls"], generator_sigma)


def _run(recording, loss, fake_score_scale, generator_sigma) -> Run:
    hyper, config = recording.json("hyper"), recording.json("config")
    network = official.network(config, recording.tensors("param_init/"))
    batch, iterations = hyper["batch_size"], hyper["iters"]
    image = (config["img_channels"],) + (config["img_resolution"],) * 2

    def draws(kind, i, sigma):
        def images(key):
            return np.moveaxis(recording[key][i].reshape(batch, *image), 1, -1)

        key = f"in/{kind}_labels" if f"in/{kind}_labels" in recording else "in/labels"
        labels = recording[key][i] if key in recording else np.zeros((batch, 0), np.float32)
        return Draws(
            z=images(f"in/{kind}_z_unit"),
            cond=labels.reshape(batch, config.get("label_dim", 0)),
            sigma=sigma,
            eps=images(f"in/{kind}_noise"),
            dropout_keys=None,
            augment_keys=None,
        )

    def fake_sigma(i):
        return official.lognormal(recording["in/fake_rnd_normal"][i], hyper)

    fns = official.step_fns(
        network.denoise, hyper["init_sigma"], loss=loss, fake_score_scale=fake_score_scale
    )
    accumulate = hyper.get("rounds", batch // hyper["batch_gpu"])
    updates = [
        Update(
            "fake_score",
            functools.partial(step.of_fake_score, fns=fns),
            None,
            _adam(hyper["lr"], hyper["betas"], hyper),
            accumulate,
        ),
        Update(
            "generator",
            functools.partial(step.of_generator, fns=fns),
            None,
            _adam(hyper["glr"], hyper["g_betas"], hyper),
            accumulate,
            then=functools.partial(
                step.follow, ema_decay=functools.partial(_ema_decay, hyper=hyper), pull=0.0
            ),
        ),
    ]
    both = [
        (draws("fake", i, fake_sigma(i)), draws("gen", i, generator_sigma(i)))
        for i in range(iterations)
    ]
    return Run(network, fns, updates, hyper, both)


def _adam(lr, betas, hyper):
    constant = {"steps": hyper["iters"], "warmup_steps": 0, "final_lr": 1.0}
    tx = optim.adam(lr=lr, beta1=betas[0], beta2=betas[1], eps=hyper["eps"], **constant)
    return tx._replace(update=jax.jit(tx.update))


def _first_step(hyper):
    """(steps done, remaining images) at the start of a resumed run."""
    return divmod(round(1000 * hyper["resume_kimg"]), hyper["batch_size"])


def _ema_decay(steps_done, *, hyper):
    batch = hyper["batch_size"]
    half_life, rampup = hyper["ema_halflife_kimg"], hyper["ema_rampup_ratio"] or 0.0
    if hyper.get("ema_mu", 0) > 0:  # a constant factor is a half-life without ramp-up
        half_life, rampup = batch * math.log(0.5) / math.log(hyper["ema_mu"]) / 1000, 0.0
    images_seen = steps_done.astype(jnp.float32) * batch + _first_step(hyper)[1]
    return optim.ema_decay(images_seen, batch, half_life_kimg=half_life, rampup_ratio=rampup)


def iterate(run: Run):
    """Yields the initial state, then state and metrics after each distill_step.

    Only the denoiser and Adam are jitted, and shared by recordings of equal shapes.
    """

    def one(carry, teacher, draws):
        updates = [
            dataclasses.replace(update, draw=lambda *keys, drawn=drawn: drawn)
            for update, drawn in zip(run.updates, draws, strict=True)
        ]
        return step.distill_step(carry, Constants(teacher), jax.random.key(0), updates=updates)

    teacher = run.network.params
    txs = {f"{update.role}_tx": update.tx for update in run.updates}
    carry = state.init_distillation(teacher, teacher, **txs)
    carry = carry.replace(step=jnp.asarray(_first_step(run.hyper)[0], jnp.int32))
    yield carry, {}
    for draws in run.draws:
        carry, metrics = one(carry, teacher, draws)
        yield carry, metrics


def last_round(run: Run, before, after, i):
    """Losses of the last micro-batch, as its share of the batch, before each update."""
    size = run.hyper["batch_gpu"]
    fake_draws, generator_draws = jax.tree.map(lambda a: a[-size:], run.draws[i])
    fake, _ = step.fake_score_loss(before.fake_score, before.generator, fake_draws, fns=run.fns)
    generator, _ = step.generator_loss(
        before.generator, run.network.params, after.fake_score, generator_draws, fns=run.fns
    )
    return [float(loss) * size / run.hyper["batch_size"] for loss in (fake, generator)]


def check(run: Run, recording):
    states, metrics = zip(*iterate(run), strict=True)
    metrics = [jax.device_get(m) for m in metrics[1:]]
    if run.updates[0].accumulate == 1:
        losses = [[m["fake_score/loss"], m["generator/loss"]] for m in metrics]
    else:
        losses = [
            last_round(run, *pair, i)
            for i, pair in enumerate(zip(states[:-1], states[1:], strict=True))
        ]
    suffix = "_last_round" if "out/fake_loss_last_round" in recording else ""
    fake_losses, generator_losses = zip(*losses, strict=True)
    for role, loss in (("fake", fake_losses), ("gen", generator_losses)):
        name = ROLES[role]
        assert official.rel(loss, recording[f"out/{role}_loss{suffix}"]) <= SERIES, role
        norms = [m[f"{name}/grad_norm"] for m in metrics]
        assert official.rel(norms, recording[f"out/{role}_grad_norm"]) <= SERIES, role
        if f"out/{role}_param_l2" in recording:
            l2 = [optax.tree.norm(getattr(s, name)) for s in states[1:]]
            assert official.rel(l2, recording[f"out/{role}_param_l2"]) <= PARAM_L2, role
    beta = [m["generator/ema_beta"] for m in metrics]
    np.testing.assert_allclose(beta, recording["out/ema_beta"], rtol=0, atol=EMA_BETA)
    for role, name in ROLES.items():
        share = share_within(run.network, recording, role, getattr(states[-1], name))
        assert share >= FINAL_SHARE, (role, share)


def share_within(network, recording, role, params) -> float:
    """Share of the well-conditioned final parameters within FINAL of the reference."""
    left_out = recording.tensors(f"ill_{role}/")
    for name, value in network.official.items():
        if name.endswith("qkv.bias"):
            key_biases = np.arange(len(value)) % 3 == 1
            left_out[name] = key_biases | (left_out.get(name, 0 * value) != 0)
    final, left_out = (
        official.flat(network.tree(t)) for t in (recording.tensors(f"final_{role}/"), left_out)
    )
    ours = official.flat(params)
    kept = [(np.abs(ours[k] - final[k]) <= FINAL)[left_out[k] == 0] for k in final]
    return np.concatenate(kept).mean()


def test_sid(sid_trajectory_case):
    recording = official.read(sid_trajectory_case.path)
    check(sid_run(recording), recording)


def test_diff_instruct(diff_instruct_trajectory_case):
    recording = official.read(diff_instruct_trajectory_case.path)
    check(diff_instruct_run(recording), recording)


@pytest.mark.whole_runs  # for a single gradient: tests/train/test_step.py
def test_accumulation_over_micro_batches_equals_the_whole_batch(sid_trajectory_case):
    run = sid_run(official.read(sid_trajectory_case.path))
    teacher = run.network.params
    draws, _ = run.draws[0]
    batch = len(draws.z)
    slices = next(n for n in range(2, batch + 1) if batch % n == 0)

    def loss_fn(fake_score, draws):
        return step.fake_score_loss(fake_score, teacher, draws, fns=run.fns)

    whole, _, grads = accumulated_grad(loss_fn, teacher, draws, 1)
    sliced, _, sliced_grads = accumulated_grad(loss_fn, teacher, draws, slices)
    np.testing.assert_allclose(sliced, whole, rtol=ACCUMULATION)
    assert official.worst_tensor(sliced_grads, grads)[0] <= ACCUMULATION_GRAD
