"""Health metrics of a training step."""

import jax
import jax.numpy as jnp
import pytest

from simjax.train import health


def test_non_finite_gradients_are_counted_by_array():
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([[12.0]]), "c": jnp.zeros(3)}
    found = health.gradients("net", grads)
    assert float(found["net/grad_norm"]) == pytest.approx(13.0)
    assert float(found["net/nonfinite_grads"]) == 0
    grads |= {"b": jnp.array([[jnp.inf]]), "c": jnp.array([jnp.nan, 1.0, -jnp.inf])}
    assert float(health.gradients("net", grads)["net/nonfinite_grads"]) == 2


def test_metrics_are_averaged_over_steps_with_an_update():
    """Two steps, the first without a generator update: its generator metrics are zeros."""
    metrics = {"generator/updates": 0.5, "generator/loss": 1.0, "samples/mean": 0.2}
    found = health.summarize(metrics | {"fake_score/loss": 3.0})
    assert found == {
        "generator/updates": 0.5,
        "generator/loss": 2.0,
        "samples/mean": 0.4,
        "fake_score/loss": 3.0,
    }


def test_each_generator_call_has_its_own_distance_gap_and_contrast():
    """Means of the metrics of two steps, k = 1 and k = 3 of three, as logged."""
    metrics = [
        {
            "bins/count": jnp.array([1.0, 3.0]),
            "bins/distance": jnp.array([2.0, 6.0]) * k,
            "bins/gap_squared": jnp.array([4.0, 12.0]) * k**2,
            "samples/contrast": jnp.float32(0.1 * k),
        }
        for k in (1, 3)
    ]
    found = [health.by_call(m, jnp.int32(k), 3) for m, k in zip(metrics, (1, 3), strict=True)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *found)
    scalars = health.summarize(mean | {"bins/count": jnp.zeros(5)} | NO_BINS)
    expected = {"distance/k=1": 2, "gap/k=1": 2, "contrast/k=1": 0.1}
    expected |= {"distance/k=3": 6, "gap/k=3": 6, "contrast/k=3": 0.3}
    assert scalars == pytest.approx(expected)


NO_BINS = {f"bins/{name}": jnp.zeros(5) for name in ("distance", "gap_squared")}
