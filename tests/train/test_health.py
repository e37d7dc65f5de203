"""The numbers that a training step reports of itself."""

import jax.numpy as jnp
import pytest

from simjax.train import health


def test_gradients_that_are_not_finite_are_counted_by_array():
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([[12.0]]), "c": jnp.zeros(3)}
    found = health.gradients("net", grads)
    assert float(found["net/grad_norm"]) == pytest.approx(13.0)
    assert float(found["net/nonfinite_grads"]) == 0
    grads |= {"b": jnp.array([[jnp.inf]]), "c": jnp.array([jnp.nan, 1.0, -jnp.inf])}
    assert float(health.gradients("net", grads)["net/nonfinite_grads"]) == 2


def test_means_are_of_the_updates_that_were_made():
    """Of two steps whose first left the generator alone: its metrics there are zeros."""
    metrics = {"generator/updates": 0.5, "generator/loss": 1.0, "samples/mean": 0.2}
    found = health.summarize(metrics | {"fake_score/loss": 3.0})
    assert found == {
        "generator/updates": 0.5,
        "generator/loss": 2.0,
        "samples/mean": 0.4,
        "fake_score/loss": 3.0,
    }
