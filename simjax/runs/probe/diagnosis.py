"""What is wrong with how a teacher is called: named by the correction that mends its curves."""

import dataclasses
from collections.abc import Callable

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

GUIDED_SLOPE = 0.5  # our choice: scales up to 2 keep it on small teachers, 5 does not


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something wrong with how a teacher is called.

    Attributes:
      name: weights, overflow (numbers that are not finite), sigma, scale, shift, family, guidance,
        steps (the sampler stops early), or uncalibrated: nothing known mends the curves.
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


def overflow(look: Look, model: Model) -> Finding:
    """The levels at which D is not finite, on noise of the data's scale."""
    shape = (look.count, *build.image_shape(model.config))
    deviation = model.config.teacher.sigma_data
    x0 = np.random.default_rng(look.seed).normal(0, deviation, shape).astype(np.float32)
    found = look.curves(model, x0)
    told = calibration.faults(found).get("finite", "the samples of its sampler are not finite")
    return Finding("overflow", f"{told}; compute in float32 or bfloat16.")


def findings(
    look: Look, model: Model, curves: Curves, steps: int, explain: bool
) -> tuple[Finding, ...]:
    """What is wrong with the call, named by the first correction that mends the curves."""
    faults = calibration.faults(curves)
    if not faults:
        return ()
    told = "; ".join(faults.values())
    if "finite" in faults:
        return (Finding("overflow", f"{told}; compute in float32 or bfloat16."),)
    for correction in corrections(model, curves, steps) if explain else ():
        x0 = look.drawn(correction.model, correction.steps)
        if x0 is not None and not calibration.faults(look.curves(correction.model, x0)):
            return (Finding(correction.name, f"{told}. {correction.remedy}"),)
    if explain:
        told += (
            ". Guidance, sigma, scale, shift, preconditioning and the sampler's steps were varied"
        )
        told += ", and nothing mended it"
    return (Finding("uncalibrated", f"{told}."),)


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


def corrections(model: Model, curves: Curves, steps: int) -> list[Correction]:
    """Ways of calling the network that would mend the curves, if the name's fault is there."""
    found = []

    def add(name: str, denoise: Denoise, remedy: str) -> None:
        found.append(Correction(name, dataclasses.replace(model, denoise=denoise), steps, remedy))

    own, null = model.denoise, model.config.network.condition.null
    found.append(
        Correction(
            "steps",
            model,
            4 * steps,
            f"With {4 * steps} steps of the sampler instead of {steps} it is right: "
            "teacher.sampler and its steps cut it short.",
        )
    )
    for factor in (0.5, 2.0, 1e-3, 1e3):
        add(
            "sigma",
            _with_sigma(own, factor),
            f"Called with {factor:g} times sigma it is right: its convention of sigma is another.",
        )
    for factor in (0.5, 2.0):
        add(
            "scale",
            _with_scale(own, factor),
            f"Called with {factor:g} times xt it is right: its data are of another scale.",
        )
    shift = float(curves.bias[0])
    if abs(shift) > 1e-3 * curves.deviation:
        add(
            "shift",
            _with_shift(own, shift),
            f"Called with xt - {shift:.3g} it is right: its data are shifted by that.",
        )
    found += [_of_family(model, family, steps) for family in _other_families(model.config)]
    if model.config.network.label_dim or model.config.network.condition.reads_prompts:
        for scale in (1.5, 2.0, 3.0, 4.0, 5.0, 7.5):
            add(
                "guidance",
                _without_guidance(own, scale, null),
                f"It looks like guidance of scale {scale:g} inside the function: give the "
                "denoiser itself, and the scale as teacher.guidance.",
            )
    return found


def _with_sigma(denoise: Denoise, factor: float) -> Denoise:
    def called(params, xt, sigma, cond, **options):
        return denoise(params, xt, factor * sigma, cond, **options)

    return called


def _with_scale(denoise: Denoise, factor: float) -> Denoise:
    def called(params, xt, sigma, cond, **options):
        return denoise(params, factor * xt, sigma, cond, **options)

    return called


def _with_shift(denoise: Denoise, shift: float) -> Denoise:
    def called(params, xt, sigma, cond, **options):
        return denoise(params, xt - shift, sigma, cond, **options)

    return called


def _without_guidance(denoise: Denoise, scale: float, null: Callable[[Condition], Condition]):
    def called(params, xt, sigma, cond, **options):
        guided = denoise(params, xt, sigma, cond, **options)
        plain = denoise(params, xt, sigma, null(cond), **options)
        return plain + (guided - plain) / scale

    return called


def _tells_variances(network: c.Network) -> bool:
    """Whether its description says if variances are put out beside F."""
    return any(field.name == "learn_sigma" for field in dataclasses.fields(network))


def _other_families(config: c.Config) -> list[str]:
    """Families whose networks have as many outputs as this one."""
    if isinstance(config.network, c.Own):
        return []
    own = config.teacher.precondition
    return [
        name
        for name, family in FAMILIES.items()
        if name != own
        and (
            _tells_variances(config.network)
            or family.learned_variance == FAMILIES[own].learned_variance
        )
    ]


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
