"""Plausible mistakes in the SIM loss must fail the gradient check of test_sim.py."""

import jax
import jax.numpy as jnp
import pytest

from simjax.losses import diff_instruct, distances, sim
from tests.helpers import analytic, theorem
from tests.helpers.theorem import Case

CASE = Case(distances.bind("pseudo_huber", c=0.3))
freeze = jax.lax.stop_gradient


def wrong_sign(x0, d_teacher, d_fake, weight, *, distance):
    return -sim.generator_loss(x0, d_teacher, d_fake, weight, distance=distance)


def frozen_y(x0, d_teacher, d_fake, weight, *, distance):
    y = freeze(d_fake - d_teacher)
    return -weight * jnp.sum(jax.vmap(jax.grad(distance))(y) * (d_fake - x0), axis=(1, 2, 3))


def frozen_teacher_input(x0, d_teacher, d_fake, weight, *, distance):
    return sim.generator_loss(x0, freeze(d_teacher), d_fake, weight, distance=distance)


def frozen_residual_x0(x0, d_teacher, d_fake, weight, *, distance):
    return sim.generator_loss(freeze(x0), d_teacher, d_fake, weight, distance=distance)


def lost_factor(x0, d_teacher, d_fake, weight, *, distance):
    return sim.generator_loss(x0, d_teacher, d_fake, weight / 2, distance=distance)


def diff_instruct_gradient(x0, d_teacher, d_fake, weight, *, distance):
    return diff_instruct.generator_loss(x0, d_teacher, d_fake, weight)


MUTANTS = (
    wrong_sign,
    frozen_y,
    frozen_teacher_input,
    frozen_residual_x0,
    lost_factor,
    diff_instruct_gradient,
)

# The location family is excluded: dx0/dtheta is constant there and s_p + eps / sigma has mean 0
# given xt, so no gradient flows through y, and frozen_y and frozen_teacher_input are correct.
SETTINGS = {
    "scale-score": (analytic.SCALE, "score"),
    "mixture-denoiser": (analytic.MIXTURE, "denoiser"),
}
every_setting = pytest.mark.parametrize(("world", "units"), SETTINGS.values(), ids=SETTINGS)


@every_setting
def test_the_correct_loss_passes(world, units):
    theorem.assert_loss_has_the_divergence_gradient(sim.generator_loss, world, CASE, units)


@every_setting
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutants_fail(mutant, world, units):
    with pytest.raises(AssertionError, match="relative error"):
        theorem.assert_loss_has_the_divergence_gradient(mutant, world, CASE, units)


@every_setting
def test_an_unfrozen_fake_score_fails(world, units):
    # Its gradient is 0: the score projection holds at every theta.
    with pytest.raises(AssertionError, match="relative error 1.0e"):
        theorem.assert_loss_has_the_divergence_gradient(
            sim.generator_loss, world, CASE, units, fake_score_moves=True
        )


def test_frozen_y_is_correct_in_a_location_family():
    theorem.assert_loss_has_the_divergence_gradient(frozen_y, analytic.LOCATION, CASE, "score")
