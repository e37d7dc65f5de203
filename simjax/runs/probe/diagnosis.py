"""Diagnoses miscalled teachers by the correction that fixes their curves."""

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

CONFIRMED = 3  # best corrections per group that are retried with all samples; our choice
GUIDED_SLOPE = 0.5  # our choice: on small teachers scales up to 2 stay above it, 5 does not


@dataclasses.dataclass(frozen=True)
class Finding:
    """A fault in how a teacher is called.

    Attributes:
      name: weights (non-finite parameters), overflow (non-finite outputs), sigma, scale, shift,
        family, guidance, steps (the sampler stops early), labels, or uncalibrated (no known
        correction fixes the curves).
    """

    name: str
    message: str  # symptom and remedy


def not_finite(model: Model) -> list[str]:
    """Names of the parameters that contain NaN or infinity."""

    @jax.jit
    def finite(params):
        return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), params)

    leaves = jax.tree.leaves_with_path(sharding.to_host(finite(model.params)))
    return [jax.tree_util.keystr(path) for path, is_finite in leaves if not is_finite]


def diverging(look: Look, model: Model, steps: int, explain: bool) -> Finding:
    """Explains non-finite samples: overflow in D, or a wrong call."""
    shape = (look.count, *build.image_shape(model.config))
    deviation = model.config.teacher.sigma_data
    x0 = np.random.default_rng(look.seed).normal(0, deviation, shape).astype(np.float32)
    curves = look.curves(model, x0)  # on Gaussian noise with the data's standard deviation
    symptom = calibration.faults(curves).get("finite", "the teacher's samples are not finite")
    if explain and curves.is_finite:
        found = _explained(look, corrections(model, curves, steps))
        if found is not None:
            return Finding(found.name, f"{symptom}. {found.remedy}")
    return Finding("overflow", f"{symptom}; compute in float32 or bfloat16.")


def findings(
    look: Look, model: Model, curves: Curves, steps: int, explain: bool
) -> tuple[Finding, ...]:
    """Faults of the call, named by the correction that fixes them."""
    faults = calibration.faults(curves)
    if not faults:
        return ()
    symptom = "; ".join(faults.values())
    if "finite" in faults:
        return (Finding("overflow", f"{symptom}; compute in float32 or bfloat16."),)
    if not explain:
        return (Finding("uncalibrated", f"{symptom}."),)
    found = _explained(look, corrections(model, curves, steps))
    if found is not None:
        return (Finding(found.name, f"{symptom}. {found.remedy}"),)
    symptom += (
        ". Tried changes of guidance, sigma, scale, shift, preconditioning and the sampler's "
        "steps; none fixed it."
    )
    return (Finding("uncalibrated", symptom),)


def of_guidance(look: Look, model: Model, steps: int) -> tuple[Finding, ...]:
    """Checks whether the config's guidance breaks a teacher that is otherwise correct."""
    x0 = look.drawn(model, steps)
    guidance = model.config.teacher.guidance
    if x0 is None:
        return (Finding("guidance", f"samples are not finite; lower guidance = {guidance}."),)
    found = look.curves(model, x0)
    slope = np.min(found.slope[(found.share > 0.02) & (found.share < 0.9)], initial=1.0)
    if slope > GUIDED_SLOPE:
        return ()
    message = (
        f"with teacher.guidance = {guidance} the slope falls to {slope:.2f}; a guided denoiser is "
        "not the posterior mean of any distribution, and one call of it leaves the data's range: "
        "use a scale nearer to 1, or guidance = 'lsg', which guides the fake score too."
    )
    return (Finding("guidance", message),)


@dataclasses.dataclass(frozen=True)
class Correction:
    """An alternative call of a network to try, and its remedy."""

    name: str
    model: Model
    steps: int
    remedy: str


def _explained(look: Look, groups: Iterable[list[Correction]]) -> Correction | None:
    """The best correction without faults, from the first group that has one."""
    for group in groups:
        ranked = []
        for number, correction in enumerate(group):  # ranked on one batch of samples
            x0 = look.drawn(correction.model, correction.steps, first=True)
            if x0 is not None:
                strain = calibration.strain(look.curves(correction.model, x0))
                ranked.append((strain, number, correction))
        for _, _, correction in sorted(ranked, key=lambda found: found[:2])[:CONFIRMED]:
            if _mends(look, correction):
                return correction
    return None


def _mends(look: Look, correction: Correction) -> bool:
    """Whether the corrected call's curves have no faults, on all samples."""
    x0 = look.drawn(correction.model, correction.steps)
    return x0 is not None and not calibration.faults(look.curves(correction.model, x0))


def corrections(model: Model, curves: Curves, steps: int) -> Iterator[list[Correction]]:
    """Yields groups of corrections to try, cheap ones first.

    Each is named after the fault that it fixes. Calls that differ only in numbers share one
    compiled program.
    """
    config = model.config
    remedy = (
        f"Sampling with {4 * steps} steps instead of {steps} fixes this: the sampler stops early; "
        "use more steps, or check teacher.sampler."
    )
    yield [Correction("steps", model, 4 * steps, remedy)]
    yield list(_of_numbers(model, curves, steps))
    if config.network.label_dim or config.network.condition.reads_prompts:
        yield list(_of_scales(model, steps))
    for families in _other_families(config):
        yield [_of_family(model, family, steps) for family in families]


def _of_numbers(model: Model, curves: Curves, steps: int) -> Iterator[Correction]:
    """Corrections of sigma, scale and shift."""
    denoise = _changed(model.denoise)

    def changed(name: str, remedy: str, **call: float) -> Correction:
        params = {"network": model.params, "call": jax.tree.map(np.float32, UNCHANGED | call)}
        called = dataclasses.replace(model, denoise=denoise, params=params)
        return Correction(name, called, steps, remedy)

    for factor in (0.5, 2.0, 1e-3, 1e3):
        remedy = f"Calling it with {factor:g} * sigma fixes this: another convention of sigma."
        yield changed("sigma", remedy, sigma=factor)
    for factor in (0.5, 2.0):
        remedy = f"Calling it with {factor:g} * xt fixes this: its data have another scale."
        yield changed("scale", remedy, scale=factor)
    shift = float(curves.bias[0])
    if abs(shift) > 1e-3 * curves.deviation:
        remedy = f"Calling it with xt - {shift:.3g} fixes this: its data are shifted by that."
        yield changed("shift", remedy, shift=shift)


def _of_scales(model: Model, steps: int) -> Iterator[Correction]:
    """Corrections that undo built-in guidance, one per scale."""
    denoise = _without_guidance(model.denoise, model.config.network.condition.null)
    for scale in (1.5, 2.0, 3.0, 4.0, 5.0, 7.5):
        params = {"network": model.params, "scale": np.float32(scale)}
        plain = dataclasses.replace(model, denoise=denoise, params=params)
        remedy = (
            f"The function seems to include guidance of scale {scale:g}: pass the unguided "
            "denoiser, and the scale as teacher.guidance."
        )
        yield Correction("guidance", plain, steps, remedy)


UNCHANGED = {"scale": 1.0, "shift": 0.0, "sigma": 1.0}


def _changed(denoise: Denoise) -> Denoise:
    """D(scale * xt - shift; factor * sigma), the numbers being parameters.

    Its parameters are {"network": the denoiser's, "call": {"scale", "shift", "sigma"}}.
    """

    def changed(params, xt, sigma, cond, **options):
        call = params["call"]
        xt = call["scale"] * xt - call["shift"]
        return denoise(params["network"], xt, call["sigma"] * sigma, cond, **options)

    return changed


def _without_guidance(denoise: Denoise, null: Callable[[Condition], Condition]) -> Denoise:
    """Undoes classifier-free guidance inside `denoise`.

    Its parameters are {"network": the denoiser's, "scale": guidance scale}.
    """

    def plain(params, xt, sigma, cond, **options):
        network, scale = params["network"], params["scale"]
        guided = denoise(network, xt, sigma, cond, **options)
        without = denoise(network, xt, sigma, null(cond), **options)
        return without + (guided - without) / scale

    return plain


def _has_learn_sigma(network: c.Network) -> bool:
    """Whether the network's config has the field learn_sigma."""
    return any(field.name == "learn_sigma" for field in dataclasses.fields(network))


def _other_families(config: c.Config) -> list[list[str]]:
    """Other preconditioning families, in groups: same output channels first."""
    if isinstance(config.network, c.Own):
        return []
    own = config.teacher.precondition
    alike, others = [], []
    for name, family in FAMILIES.items():
        is_alike = family.learned_variance == FAMILIES[own].learned_variance
        (alike if is_alike else others).append(name)
    alike.remove(own)
    return [alike, others] if _has_learn_sigma(config.network) else [alike]


def _of_family(model: Model, family: str, steps: int) -> Correction:
    """The same network with another family's preconditioning and default sampler."""
    before = model.config
    network = before.network
    if _has_learn_sigma(network):  # keep its number of output channels in any family
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
    was = before.teacher.precondition
    remedy = f"Calling it as {family!r} fixes this: teacher.precondition should not be {was!r}."
    return Correction("family", changed, steps, remedy)
