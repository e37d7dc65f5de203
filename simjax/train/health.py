"""Numbers that show whether distillation is healthy, since its loss hovers about zero and cannot.

For each range of sigma: the mean distance d(y) and the root mean square of the gap
y = D_fake - D_teacher; of a generator of K calls the same for each k, and the samples' contrast.
Both fall as the generator's distribution nears the teacher's. Sums and counts are kept apart, so
that averages over slices, steps and log windows stay exact.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from simjax.losses.distances import Distance
from simjax.typing import Array, Images, Metrics, Params, PerExample

SIGMA_EDGES = (0.05, 0.2, 0.8, 3.2)  # our choice: factors of four about sigma_data = 0.5
SIGMA_BINS = (
    f"sigma<{SIGMA_EDGES[0]}",
    *(f"sigma<{edge}" for edge in SIGMA_EDGES[1:]),
    f"sigma>{SIGMA_EDGES[-1]}",
)


def gradients(name: str, grads: Params) -> Metrics:
    """Global L2 norm, and how many of the arrays hold a number that is not finite.

    One sum over each array gives both: a sum that is not finite has such a number in it, or one
    whose square float32 does not hold.
    """
    squares = jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads)])
    return {
        f"{name}/grad_norm": jnp.sqrt(squares.sum()),
        f"{name}/nonfinite_grads": jnp.sum(~jnp.isfinite(squares)).astype(jnp.float32),
    }


def finite_examples(*images: Images) -> Array:
    """Which examples are finite in every one of the images, shape (b,)."""
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
    """Sums of d(y), ||y||^2 / pixels and counts by range of sigma; samples' level and contrast."""
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
    """Sums of mean logits and counts by range of sigma; the share of right signs."""
    bins = jax.nn.one_hot(jnp.digitize(sigma, jnp.array(SIGMA_EDGES)), len(SIGMA_BINS))
    real, generated = (jax.lax.stop_gradient(logits) for logits in (logits_real, logits_generated))
    return {
        "logits/count": bins.sum(0),
        "logits/real": real.mean((1, 2)) @ bins,
        "logits/generated": generated.mean((1, 2)) @ bins,
        "fake_score/accuracy": ((real > 0).mean() + (generated < 0).mean()) / 2,
    }


def by_call(found: Metrics, calls: Array, most: int) -> Metrics:
    """The sums of `generator` in the place of the call k that made the samples, shape (most,)."""
    here = jax.nn.one_hot(calls - 1, most)
    sums = {name: here * found[f"bins/{name}"].sum() for name in ("count", "distance")}
    sums["gap_squared"] = here * found["bins/gap_squared"].sum()
    sums["steps"], sums["contrast"] = here, here * found["samples/contrast"]
    return {f"calls/{name}": value for name, value in sums.items()}


def summarize(metrics: dict[str, Array]) -> dict[str, float]:
    """Scalars of a log window from its mean metrics: sums over counts, by range of sigma and k."""
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
    """Mean logits of real and of generated images in each range of sigma that has examples."""
    return {
        f"logit_{kind}/{name}": float(total / count)
        for kind in ("real", "generated")
        for name, count, total in zip(
            SIGMA_BINS, metrics["logits/count"], metrics[f"logits/{kind}"], strict=True
        )
        if count > 0
    }


def _by_name(metrics: dict[str, Array], group: str, names: Sequence[str]) -> dict[str, float]:
    """Mean distance and root mean square gap of each that has examples."""
    found = {}
    sums = [metrics[f"{group}/{name}"] for name in ("count", "distance", "gap_squared")]
    for name, count, distance, gap_squared in zip(names, *sums, strict=True):
        if count > 0:
            found[f"distance/{name}"] = float(distance / count)
            found[f"gap/{name}"] = float((gap_squared / count) ** 0.5)
    return found


def _of_updates_made(scalars: dict[str, float]) -> dict[str, float]:
    """Means over the updates that were made, where a network is not updated at every step.

    ROLE/updates is the share of them; an update that is left out counts as zeros.
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
