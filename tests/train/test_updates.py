"""Updates on a Gaussian: parameters after a step in closed form from the step's draws.

Teacher, fake score and generator are denoisers of N(mean, S2) with different means: with
k = sigma^2 / (S2 + sigma^2), y = k (fake - teacher), and G(z) is linear in its mean.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import simjax
from simjax import config
from simjax.runs import setup
from simjax.runtime import sharding
from simjax.train import update

S2, TEACHER, RATE, BATCH = 0.64, 0.4, 0.05, 4


def denoise(params, xt, sigma, cond):
    sigma = sigma[:, None, None, None]
    return (S2 * xt + sigma**2 * params["mean"]) / (S2 + sigma**2)


def made(change=lambda updates: updates, **fields) -> simjax.Distillation:
    """A distillation by gradient descent, with different initial means."""
    options = config.Config(batch=BATCH, steps=100)
    options.loss.distance = "l2_squared"
    for path, value in fields.items():
        *parents, name = path.split("__")
        setattr(config.get_field(options, ".".join(parents)) if parents else options, name, value)
    teacher = simjax.from_function(denoise, {"mean": jnp.float32(TEACHER)}, shape=(1, 1, 1))

    def by_descent(updates):
        return change([dataclasses.replace(each, tx=optax.sgd(RATE)) for each in updates])

    found = simjax.Distillation(teacher, options, updates=by_descent)
    begun = found.state.with_role("fake_score", params={"mean": jnp.float32(0.1)})
    begun = begun.with_role("generator", params={"mean": jnp.float32(-0.7)})
    found.state = begun.replace(ema={"mean": jnp.float32(-0.7)})
    return found


def means(state) -> np.ndarray:
    """Means of the fake score, the generator and its EMA."""
    return np.array([state.fake_score["mean"], state.generator["mean"], state.ema["mean"]])


class Expected:
    """The same steps in NumPy, in closed form."""

    def __init__(self, found: simjax.Distillation):
        self.options, self.key, self.updates = found._model.config, found._key, found._updates
        self.fake, self.generator, self.ema = means(found.state).astype(np.float64)

    def images(self, draws):
        of = self.options.generator.sigma_init**2
        z = np.asarray(draws.z, np.float64).ravel()
        return (S2 * self.options.generator.sigma_init * z + of * self.generator) / (S2 + of)

    def fake_score_update(self, draws):
        sigma, eps = (np.asarray(a, np.float64).ravel() for a in (draws.sigma, draws.eps))
        x0, share = self.images(draws), sigma**2 / (S2 + sigma**2)
        weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
        off = share * (self.fake - x0) + S2 * sigma * eps / (S2 + sigma**2)
        self.fake -= RATE * np.mean(2 * weight * off * share)

    def generator_update(self, draws, number):
        sigma = np.asarray(draws.sigma, np.float64)
        share = sigma**2 / (S2 + sigma**2)
        moves = self.options.generator.sigma_init**2
        moves = moves / (S2 + moves)
        y = share * (self.fake - TEACHER)
        self.generator -= RATE * np.mean(2 * y * share * moves)
        images = number * BATCH
        half_life = min(500_000, 0.05 * images)
        beta = 0.5 ** (BATCH / max(half_life, 1e-8))
        self.ema = beta * self.ema + (1 - beta) * self.generator
        pull = self.options.fake_score.pull
        self.fake = (1 - pull) * self.fake + pull * self.generator

    def step(self, number, every=1):
        state = dataclasses.make_dataclass("State", ["step"])(jnp.int32(number))
        key = jax.random.fold_in(self.key, number)
        *firsts, last = update.draws(state, update.Constants(None), key, updates=self.updates)
        for draws in firsts:
            self.fake_score_update(draws)
        past = number - -(-self.options.generator.start // BATCH)
        if past >= 0 and past % every == 0:
            self.generator_update(last, number)
        return np.array([self.fake, self.generator, self.ema])


def differences(found: simjax.Distillation, steps: int, every: int = 1, twin=None) -> float:
    """The largest difference from the closed form after any step."""
    expected, worst = Expected(twin or found), 0.0
    for number in range(steps):
        found.train(1)
        worst = max(worst, np.abs(means(found.state) - expected.step(number, every)).max())
    return worst


FIELDS = {
    "plain": {},
    "two": {"fake_score_updates": 2},
    "five": {"fake_score_updates": 5},
    "start": {"generator__start": 2 * BATCH},
    "part of a batch": {"generator__start": BATCH + 1},
    "pull": {"fake_score__pull": 0.03},
    "all": {"fake_score_updates": 2, "generator__start": BATCH, "fake_score__pull": 0.25},
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_step_equals_its_closed_form(name):
    assert differences(made(**FIELDS[name]), steps=4) < 2e-6


def first_dropped(updates):
    return updates[1:]


def generator_first(updates):
    return updates[-1:] + updates[:-1]


def one_later(updates):
    return [*updates[:-1], dataclasses.replace(updates[-1], start=updates[-1].start + 1)]


def at_once(updates):
    return [*updates[:-1], dataclasses.replace(updates[-1], start=0)]


def pulled_before(updates):
    """Pulls the fake score before the generator update instead of after it."""
    *firsts, last = updates
    then = last.then

    def loss(params, state, constants, draws):
        pulled = 0.97 * state.fake_score["mean"] + 0.03 * state.generator["mean"]
        return last.loss(
            params, state.with_role("fake_score", params={"mean": pulled}), constants, draws
        )

    return [*firsts, dataclasses.replace(last, loss=loss, then=then)]


def pulled_the_wrong_way(updates):
    *firsts, last = updates

    def then(state):
        before = state.fake_score["mean"]
        after, metrics = last.then(state)
        pulled = 0.03 * before + 0.97 * after.generator["mean"]
        return after.with_role("fake_score", params={"mean": pulled}), metrics

    return [*firsts, dataclasses.replace(last, then=then)]


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("two", first_dropped),
        ("two", generator_first),
        ("start", one_later),
        ("start", at_once),
        ("pull", pulled_before),
        ("pull", pulled_the_wrong_way),
    ],
)
def test_mutants_differ_from_the_closed_form(name, mutant):
    fields = FIELDS[name]
    assert differences(made(mutant, **fields), steps=4, twin=made(**fields)) > 1e-4


def test_a_pull_of_one_copies_the_generator_to_the_fake_score():
    found = made(fake_score__pull=1.0)
    found.train(1)
    assert found.state.fake_score["mean"] == found.state.generator["mean"] != -0.7


def test_an_update_may_run_every_second_step():
    def rarely(updates):
        return [*updates[:-1], dataclasses.replace(updates[-1], every=2)]

    assert differences(made(rarely), steps=5, every=2) < 2e-6


def test_metrics_of_skipped_updates_are_left_out():
    found = made(generator__start=2 * BATCH)
    found.train(3)
    before, _, after = found.metrics
    assert before["generator/updates"] == 0 and after["generator/updates"] == 1
    assert not {"generator/loss", "samples/mean"} & set(before)
    assert {"generator/loss", "samples/mean"} <= set(after)
    assert {"fake_score/loss"} <= set(before)


def test_a_user_defined_list_trains_the_fake_score_twice():
    """Equals fake_score_updates = 2, with the same draws."""
    twice = made(lambda updates: [updates[0], *updates])
    assert differences(twice, steps=3) < 2e-6
    same = made(fake_score_updates=2)
    same.train(3)
    np.testing.assert_array_equal(means(twice.state), means(same.state))


def test_a_generator_with_a_late_start_decays_over_the_remaining_steps():
    options = config.Config(batch=BATCH, steps=10, network=config.SongUNet())
    options.generator.start = 4 * BATCH
    options.generator.optim = config.Optim(lr=1.0, final_lr=0.1)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    *_, generator = setup.updates_of(options, setup.step_fns(options, denoise, mesh), mesh)
    state = generator.tx.init(jnp.ones(1))
    for _ in range(7):  # the seventh is at the end of six steps
        move, state = generator.tx.update(jnp.ones(1), state, jnp.ones(1))
    np.testing.assert_allclose(move, [-0.1], rtol=1e-5)
