"""EDM's augmentation pipe with recorded random numbers against NVlabs/edm."""

import jax
import numpy as np

from simjax.data import augment
from tests.helpers import official

EXACT, COLOUR, GEOMETRIC, BOTH, LABELS = 0, 2e-6, 5e-5, 1e-4, 1e-6  # absolute


def test_images_and_labels(augment_case):
    recording, name = official.read(augment_case.path), augment_case.name
    case = recording.json("cases")[name]
    p, multipliers = case["kwargs"]["p"], {k: v for k, v in case["kwargs"].items() if k != "p"}
    images = recording.images(case["images"])
    pipe, draws = augment.Pipe(**multipliers), recorded_draws(recording, name, multipliers)
    transform = jax.jit(jax.vmap(lambda *given: augment.apply(*given, p=p, pipe=pipe)))
    results, labels = transform(images, draws)

    errors = np.abs(results - recording.images(f"{name}/out"))
    assert errors.max() <= tolerance({k for k, v in multipliers.items() if v})
    np.testing.assert_allclose(labels, recording[f"{name}/labels"], rtol=0, atol=LABELS)


def tolerance(enabled):
    geometric, colour = enabled & augment.GEOMETRY.keys(), enabled & augment.COLOURS.keys()
    if geometric:
        return BOTH if colour else GEOMETRIC
    return COLOUR if colour else EXACT


def recorded_draws(recording, name, multipliers):
    """The reference's random numbers, in the order drawn, as augment.Draws.

    Each transformation draws its numbers, then its gate; aniso then draws whether it is oblique.
    Uniform numbers are in [0, 1) in the reference and in [-1, 1) here, except for gates.
    """
    recorded = sorted(recording.tensors(f"{name}/draw").items())
    draws = {}
    for transformation in augment.TRANSFORMATIONS:
        if not multipliers.get(transformation):
            continue
        count = 4 if transformation == "aniso" else 2
        drawn, recorded = recorded[:count], recorded[count:]
        _, gate = drawn.pop(min(count, 3) - 1)
        units = [2 * value - 1 if kind.endswith("_rand") else value for kind, value in drawn]
        columns = [value.reshape(-1, gate.size) for value in (*units, gate)]
        draws[transformation] = np.concatenate(columns).T.astype(np.float32)
    assert not recorded
    return draws
