"""Health metrics of distillation, whose loss hovers around zero.

For each range of sigma: the mean distance d(y) and the root mean square of the gap
y = D_fake - D_teacher; for a K-step generator the same for each call k, with the contrast of its
samples. Both fall as the generator's distribution approaches the teacher's. Sums and counts are
kept separate, so that averages over microbatches, steps and log windows stay exact.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from simjax.losses.distances import Distance
from simjax.typing import Array, Images, Metrics, Params, PerExample

SIGMA_EDGES = (0.05, 0.2, 0.8, 3.2)  # our choice: factors of four around sigma_data = 0.5
SIGMA_BINS = (
    f"sigma<{SIGMA_EDGES[0]}",
    *(f"sigma<{edge}" for edge in SIGMA_EDGES[1:]),
    f"sigma>{SIGMA_EDGES[-1]}",
)


def gradients(name: str, grads: Params) -> Metrics:
    """Global L2 norm of a gradient and its number of non-finite arrays.

    One sum of squares per array gives both: it is non-finite if an element is, or if an element's
    square overflows float32.

    >>> metrics = gradients("teacher", {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.zeros(2)})
    >>> print(metrics["teacher/grad_norm"], metrics["teacher/nonfinite_grads"])
    5.0 0.0
    """
    squares = jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads)])
    return {
        f"{name}/grad_norm": jnp.sqrt(squares.sum()),
        f"{name}/nonfinite_grads": jnp.sum(~jnp.isfinite(squares)).astype(jnp.float32),
    }


def finite_examples(*images: Images) -> Array:
    """Mask (b,) of examples that are finite in all image batches."""
    return jnp.all(jnp.stack([jnp.isfinite(image).all((1, 2, 3)) for image in images]), axis=0)


def generator(
    x0: Images,
    d_teacher: Images,
    d_fake: Images,
    sigma: PerExample,
    finite: Array,
    *,
    distance: Distance,
) -> Metrics:
    """Sums of distance, squared gap and count per sigma range; sample statistics.

    Squared gap: ||y||^2 / (h w c) of each example. Sample statistics: mean and contrast (the
    standard deviation over one image) of x0.
    """
    y = jax.lax.stop_gradient(d_fake - d_teacher)
    x0 = jax.lax.stop_gradient(x0)
    bins = jax.nn.one_hot(jnp.digitize(sigma, jnp.array(SIGMA_EDGES)), len(SIGMA_BINS))
    bins *= finite[:, None]
    return {
        "bins/count": bins.sum(0),
        "bins/distance": jax.vmap(distance)(y) @ bins,
        "bins/gap_squared": jnp.mean(y**2, axis=(1, 2, 3)) @ bins,
        "generator/nonfinite_examples": jnp.sum(~finite).astype(jnp.float32),
        "samples/mean": x0.mean(),
        "samples/contrast": x0.std(axis=(1, 2, 3)).mean(),
    }


def discriminator(logits_real: Array, logits_generated: Array, sigma: PerExample) -> Metrics:
    """Sums of mean logits and counts per sigma range; the discriminator's accuracy."""
    bins = jax.nn.one_hot(jnp.digitize(sigma, jnp.array(SIGMA_EDGES)), len(SIGMA_BINS))
    real, generated = (jax.lax.stop_gradient(logits) for logits in (logits_real, logits_generated))
    return {
        "logits/count": bins.sum(0),
        "logits/real": real.mean((1, 2)) @ bins,
        "logits/generated": generated.mean((1, 2)) @ bins,
        "fake_score/accuracy": ((real > 0).mean() + (generated < 0).mean()) / 2,
    }


def by_call(found: Metrics, calls: Array, most: int) -> Metrics:
    """The sums of `generator` at index k - 1 of length-K arrays.

    Args:
      calls: k, a scalar for the whole batch.
      most: K, the length of each returned array.
    """
    here = jax.nn.one_hot(calls - 1, most)
    sums = {name: here * found[f"bins/{name}"].sum() for name in ("count", "distance")}
    sums["gap_squared"] = here * found["bins/gap_squared"].sum()
    sums["steps"], sums["contrast"] = here, here * found["samples/contrast"]
    return {f"calls/{name}": value for name, value in sums.items()}


def summarize(metrics: dict[str, Array]) -> dict[str, float]:
    """Scalars of a log window: sums divided by counts.

    >>> distance = {"bins/count": [2, 0, 0, 0, 0], "bins/distance": [6.0, 0, 0, 0, 0]}
    >>> summarize(distance | {"bins/gap_squared": [8.0, 0, 0, 0, 0], "generator/loss": 0.1})
    {'generator/loss': 0.1, 'distance/sigma<0.05': 3.0, 'gap/sigma<0.05': 2.0}
    """
    plain = {
        name: value
        for name, value in metrics.items()
        if not name.startswith(("bins", "calls", "logits"))
    }
    scalars = _of_updates_made({name: float(value) for name, value in plain.items()})
    if "bins/count" in metrics:
        scalars |= _by_name(metrics, "bins", SIGMA_BINS)
    if "calls/count" in metrics:
        names = [f"k={k + 1}" for k in range(len(metrics["calls/count"]))]
        scalars |= _by_name(metrics, "calls", names)
        for name, steps, contrast in zip(
            names, metrics["calls/steps"], metrics["calls/contrast"], strict=True
        ):
            if steps > 0:
                scalars[f"contrast/{name}"] = float(contrast / steps)
    if "logits/count" in metrics:
        scalars |= _logits_by_name(metrics)
    return scalars


def _logits_by_name(metrics: dict[str, Array]) -> dict[str, float]:
    """Mean logits of real and generated images per non-empty sigma range."""
    return {
        f"logit_{kind}/{name}": float(total / count)
        for kind in ("real", "generated")
        for name, count, total in zip(
            SIGMA_BINS, metrics["logits/count"], metrics[f"logits/{kind}"], strict=True
        )
        if count > 0
    }


def _by_name(metrics: dict[str, Array], group: str, names: Sequence[str]) -> dict[str, float]:
    """Mean distance and root mean square gap of each non-empty bin."""
    found = {}
    sums = [metrics[f"{group}/{name}"] for name in ("count", "distance", "gap_squared")]
    for name, count, distance, gap_squared in zip(names, *sums, strict=True):
        if count > 0:
            found[f"distance/{name}"] = float(distance / count)
            found[f"gap/{name}"] = float((gap_squared / count) ** 0.5)
    return found


def _of_updates_made(scalars: dict[str, float]) -> dict[str, float]:
    """Means over the steps in which a network was updated.

    ROLE/updates is the fraction of steps with an update; the metrics of a skipped update are zeros.
    """
    shares = {k.removesuffix("/updates"): v for k, v in scalars.items() if k.endswith("/updates")}
    made = {}
    for name, value in scalars.items():
        role = name.partition("/")[0]
        share = shares.get("generator" if role == "samples" else role, 1.0)
        if name.endswith("/updates"):
            made[name] = value
        elif share:
            made[name] = value / share
    return made
