"""What is wrong with how a teacher is called: named by the correction that mends its curves."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from simjax import config as c
from simjax.diffusion.families import FAMILIES
from simjax.evaluation import calibration
from simjax.evaluation.calibration import Curves
from simjax.models import build
from simjax.models.model import Model
from simjax.runs.probe.look import Look
from simjax.runtime import sharding
from simjax.typing import Condition, Denoise

CONFIRMED = 3  # corrections that are tried once more with all samples; our choice
GUIDED_SLOPE = 0.5  # our choice: scales up to 2 keep it on small teachers, 5 does not


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something wrong with how a teacher is called.

    Attributes:
      name: weights, overflow (numbers that are not finite), sigma, scale, shift, family, guidance,
        steps (the sampler stops early), labels, or uncalibrated: nothing known mends the curves.
      told: what was seen, and what to do.
    """

    name: str
    told: str


def not_finite(model: Model) -> list[str]:
    """Names of the parameters that hold numbers which are not finite."""

    @jax.jit
    def finite(params):
        return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), params)

    leaves = jax.tree.leaves_with_path(sharding.to_host(finite(model.params)))
    return [jax.tree_util.keystr(path) for path, is_finite in leaves if not is_finite]


def diverging(look: Look, model: Model, steps: int, explain: bool) -> Finding:
    """Why samples are not finite: D is not, or the call is wrong."""
    shape = (look.count, *build.image_shape(model.config))
    deviation = model.config.teacher.sigma_data
    x0 = np.random.default_rng(look.seed).normal(0, deviation, shape).astype(np.float32)
    curves = look.curves(model, x0)  # on noise of the data's scale
    told = calibration.faults(curves).get("finite", "the samples of its sampler are not finite")
    if explain and curves.is_finite:
        found = _explained(look, corrections(model, curves, steps))
        if found is not None:
            return Finding(found.name, f"{told}. {found.remedy}")
    return Finding("overflow", f"{told}; compute in float32 or bfloat16.")


def findings(
    look: Look, model: Model, curves: Curves, steps: int, explain: bool
) -> tuple[Finding, ...]:
    """What is wrong with the call, named by the correction that mends the curves."""
    faults = calibration.faults(curves)
    if not faults:
        return ()
    told = "; ".join(faults.values())
    if "finite" in faults:
        return (Finding("overflow", f"{told}; compute in float32 or bfloat16."),)
    if not explain:
        return (Finding("uncalibrated", f"{told}."),)
    found = _explained(look, corrections(model, curves, steps))
    if found is not None:
        return (Finding(found.name, f"{told}. {found.remedy}"),)
    told += (
        ". Guidance, sigma, scale, shift, preconditioning and the sampler's steps were varied, and "
        "nothing mended it."
    )
    return (Finding("uncalibrated", told),)


def of_guidance(look: Look, model: Model, steps: int) -> tuple[Finding, ...]:
    """Whether the config's guidance breaks what its teacher keeps without."""
    x0 = look.drawn(model, steps)
    guidance = model.config.teacher.guidance
    if x0 is None:
        return (Finding("guidance", f"with guidance {guidance} samples are not finite."),)
    found = look.curves(model, x0)
    slope = np.min(found.slope[(found.share > 0.02) & (found.share < 0.9)], initial=1.0)
    if slope > GUIDED_SLOPE:
        return ()
    told = (
        f"with teacher.guidance = {guidance} the slope falls to {slope:.2f}; a guided teacher is "
        "of no law, and one call of it leaves the data's range: a scale nearer to 1, or "
        "guidance = 'lsg', which guides the fake score too."
    )
    return (Finding("guidance", told),)


@dataclasses.dataclass(frozen=True)
class Correction:
    """Another way of calling a network, to be tried."""

    name: str
    model: Model
    steps: int
    remedy: str


def _explained(look: Look, groups: Iterable[list[Correction]]) -> Correction | None:
    """The first group's correction whose curves have no faults, the best of its group."""
    for group in groups:
        ranked = []
        for number, correction in enumerate(group):  # one batch of samples, for an impression
            x0 = look.drawn(correction.model, correction.steps, first=True)
            if x0 is not None:
                strain = calibration.strain(look.curves(correction.model, x0))
                ranked.append((strain, number, correction))
        for _, _, correction in sorted(ranked, key=lambda found: found[:2])[:CONFIRMED]:
            if _mends(look, correction):
                return correction
    return None


def _mends(look: Look, correction: Correction) -> bool:
    """Whether all samples of the corrected call have curves without faults."""
    x0 = look.drawn(correction.model, correction.steps)
    return x0 is not None and not calibration.faults(look.curves(correction.model, x0))


def corrections(model: Model, curves: Curves, steps: int) -> Iterator[list[Correction]]:
    """Ways of calling the network that would mend the curves, if the name's fault is there.

    In groups, the quick ones first: calls that differ in numbers alone share what is compiled.
    """
    config = model.config
    told = (
        f"With {4 * steps} steps of the sampler instead of {steps} it is right: teacher.sampler "
        "and its steps cut it short."
    )
    yield [Correction("steps", model, 4 * steps, told)]
    yield list(_of_numbers(model, curves, steps))
    if config.network.label_dim or config.network.condition.reads_prompts:
        yield list(_of_scales(model, steps))
    for families in _other_families(config):
        yield [_of_family(model, family, steps) for family in families]


def _of_numbers(model: Model, curves: Curves, steps: int) -> Iterator[Correction]:
    """Another sigma, scale or shift."""
    denoise = _changed(model.denoise)

    def changed(name: str, remedy: str, **call: float) -> Correction:
        params = {"network": model.params, "call": jax.tree.map(np.float32, UNCHANGED | call)}
        called = dataclasses.replace(model, denoise=denoise, params=params)
        return Correction(name, called, steps, remedy)

    for factor in (0.5, 2.0, 1e-3, 1e3):
        told = f"Called with {factor:g} times sigma it is right: another convention of sigma."
        yield changed("sigma", told, sigma=factor)
    for factor in (0.5, 2.0):
        told = f"Called with {factor:g} times xt it is right: its data are of another scale."
        yield changed("scale", told, scale=factor)
    shift = float(curves.bias[0])
    if abs(shift) > 1e-3 * curves.deviation:
        told = f"Called with xt - {shift:.3g} it is right: its data are shifted by that."
        yield changed("shift", told, shift=shift)


def _of_scales(model: Model, steps: int) -> Iterator[Correction]:
    """Without guidance of some scale."""
    denoise = _without_guidance(model.denoise, model.config.network.condition.null)
    for scale in (1.5, 2.0, 3.0, 4.0, 5.0, 7.5):
        params = {"network": model.params, "scale": np.float32(scale)}
        plain = dataclasses.replace(model, denoise=denoise, params=params)
        told = (
            f"It looks like guidance of scale {scale:g} inside the function: give the denoiser "
            "itself, and the scale as teacher.guidance."
        )
        yield Correction("guidance", plain, steps, told)


UNCHANGED = {"scale": 1.0, "shift": 0.0, "sigma": 1.0}


def _changed(denoise: Denoise) -> Denoise:
    """D(scale xt - shift; sigma times a factor), of {"network": parameters, "call": the three}."""

    def changed(params, xt, sigma, cond, **options):
        call = params["call"]
        xt = call["scale"] * xt - call["shift"]
        return denoise(params["network"], xt, call["sigma"] * sigma, cond, **options)

    return changed


def _without_guidance(denoise: Denoise, null: Callable[[Condition], Condition]) -> Denoise:
    """What was guided by a scale, of {"network": parameters, "scale": it}."""

    def plain(params, xt, sigma, cond, **options):
        network, scale = params["network"], params["scale"]
        guided = denoise(network, xt, sigma, cond, **options)
        without = denoise(network, xt, sigma, null(cond), **options)
        return without + (guided - without) / scale

    return plain


def _tells_variances(network: c.Network) -> bool:
    """Whether its description says if variances are put out beside F."""
    return any(field.name == "learn_sigma" for field in dataclasses.fields(network))


def _other_families(config: c.Config) -> list[list[str]]:
    """Families whose networks have as many outputs as this one; then those that may have."""
    if isinstance(config.network, c.Own):
        return []
    own = config.teacher.precondition
    alike, others = [], []
    for name, family in FAMILIES.items():
        is_alike = family.learned_variance == FAMILIES[own].learned_variance
        (alike if is_alike else others).append(name)
    alike.remove(own)
    return [alike, others] if _tells_variances(config.network) else [alike]


def _of_family(model: Model, family: str, steps: int) -> Correction:
    """The same network under another family's coefficients, sampled as that family is."""
    before = model.config
    network = before.network
    if _tells_variances(network):  # as many outputs as it has, whatever the family
        known = FAMILIES[before.teacher.precondition].learned_variance
        learned = known if network.learn_sigma is None else network.learn_sigma
        network = dataclasses.replace(network, learn_sigma=learned)
    teacher = dataclasses.replace(before.teacher, precondition=family, sampler=c.Sampler())
    config = c.complete(
        dataclasses.replace(before, network=network, teacher=teacher),
        network,
        family,
        before.teacher.sigma_data,
    )
    denoise, _ = build.denoiser(config, model.weights(model.params))
    changed = dataclasses.replace(model, config=config, denoise=denoise)
    told = f"teacher.precondition is not {before.teacher.precondition!r}"
    remedy = f"As {family!r} it is right: {told}."
    return Correction("family", changed, steps, remedy)
