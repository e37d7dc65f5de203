"""The teacher probe: what a denoiser says about its data and about how it is called, without data.

Samples of the teacher's own sampler, noise of every level, and the curves of
evaluation/calibration.py; from them settings for a distillation, and what is wrong with the call.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simjax import config as c
from simjax.diffusion.families import FAMILIES
from simjax.errors import ConfigError
from simjax.evaluation import calibration
from simjax.evaluation.calibration import Curves, Proposal
from simjax.models import build, samplers
from simjax.models.model import Model
from simjax.runs import report
from simjax.runtime import settings, sharding, values
from simjax.typing import Condition, Denoise, Float

SAMPLES, STEPS, LEVELS = 256, 32, 25  # our choice
SIGMA_INITS = (0.5, 1.0, 2.0)  # times the proposed one, of the pictures


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


@dataclasses.dataclass(frozen=True)
class Probe:
    """What a probe has found.

    Attributes:
      curves, proposal: None where D is not finite.
      findings: what is wrong with the call; empty: nothing.
      changes: fields of a config, by dotted name, and the reason of each value.
      images: of the teacher's sampler, "teacher"; of one call, "sigma_init = ...".
      steps: of the sampler.
      seconds: that it took.
    """

    curves: Curves | None
    proposal: Proposal | None
    findings: tuple[Finding, ...]
    changes: dict[str, tuple[Any, str]]
    images: dict[str, Float[np.ndarray, "n h w c"]]
    steps: int
    seconds: float

    def table(self) -> str:
        """Curves, proposals with their reasons and findings, for a person."""
        lines = []
        if self.curves is not None:
            lines += [_curves_table(self.curves), ""]
        if self.changes:
            width = max(map(len, self.changes))
            lines += [
                f"{name:{width}}  {_shown(value):>10}  {reason}"
                for name, (value, reason) in self.changes.items()
            ]
            lines.append("")
        lines += [f"WARNING ({found.name}): {found.told}" for found in self.findings]
        if not self.findings:
            lines.append("Called as it was trained, as far as its own samples tell.")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as probe.json holds them."""
        curves = self.curves and {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in dataclasses.asdict(self.curves).items()
        }
        return {
            "curves": curves,
            "proposal": self.proposal and dataclasses.asdict(self.proposal),
            "changes": {name: list(found) for name, found in self.changes.items()},
            "findings": [dataclasses.asdict(found) for found in self.findings],
            "steps": self.steps,
            "seconds": self.seconds,
        }


@settings.independent
def probe(
    model: Model,
    *,
    samples: int = SAMPLES,
    steps: int = STEPS,
    levels: int = LEVELS,
    seed: int = 0,
    explain: bool = True,
) -> Probe:
    """Looks at a teacher, in steps of its sampler and at noise levels of its data's scale.

    Args:
      explain: look for what would mend a call that is wrong; each possibility costs as much again.

    Raises:
      ConfigError: a text-to-image model without captions.
    """
    began = time.monotonic()
    values.instance("model", model, Model, "simjax.load(SOURCE) makes one")
    samples = values.whole_number("samples", samples, 2)
    steps = values.whole_number("steps", steps, 1)
    levels, seed = values.whole_number("levels", levels, 8), values.seed(seed)
    config = dataclasses.replace(
        model.config, teacher=dataclasses.replace(model.config.teacher, guidance=1.0)
    )
    plain = dataclasses.replace(model, config=config)
    look = Look(plain, samples, levels, seed)
    if broken := _not_finite(model):
        told = f"{broken[0]} and {len(broken) - 1} more" if broken[1:] else broken[0]
        told += " hold numbers that are not finite; port the weights again."
        return _nothing(Finding("weights", told), steps, began)
    x0 = look.drawn(plain, steps)
    if x0 is None:
        return _nothing(look.overflow(plain), steps, began)
    curves = look.curves(plain, x0)
    findings = _findings(look, plain, curves, steps, explain)
    if model.config.teacher.guidance != 1 and not findings:
        findings = _of_guidance(look, model, steps)
    if not curves.is_finite:
        return dataclasses.replace(_nothing(findings[0], steps, began), curves=curves)
    proposal = calibration.propose(curves)
    images = look.pictures(model, x0, proposal.sigma_init)
    seconds = time.monotonic() - began
    changes = _changes(model.config, proposal)
    return Probe(curves, proposal, findings, changes, images, steps, seconds)


class Look:
    """Samples, noise and conditions of a probe, for the model and for its corrections."""

    def __init__(self, model: Model, samples: int, levels: int, seed: int):
        if model.config.network.condition.reads_prompts and model.captions is None:
            raise ConfigError(
                "the probe of a text-to-image model needs captions: probe a run directory, which "
                "has its own."
            )
        self.batch = sharding.rounded_up(min(model.config.evaluation.batch, samples), model.mesh)
        self.count = -(-samples // self.batch) * self.batch
        classes = np.arange(self.count, dtype=np.int32) % max(model.classes, 1)
        self.cond = jax.tree.map(np.asarray, model.asked(classes))
        self.levels, self.seed = levels, seed

    def drawn(self, model: Model, steps: int) -> Float[np.ndarray, "n h w c"] | None:
        """Samples of the model's own sampler, data units; None if they are not finite."""
        sampler = samplers.many_steps(model, steps)
        drawing = report.drawing_of(
            dataclasses.replace(model, decode=lambda samples: samples),
            self.cond,
            self.count,
            self.seed,
        )
        try:
            return np.concatenate(list(drawing.images(sampler.function, sampler.params)))
        except ConfigError:
            return None

    def curves(self, model: Model, x0: Float[np.ndarray, "n h w c"]) -> Curves:
        """The model's curves on these samples."""
        denoise = _called(model)
        mean = x0.mean(0, keepdims=True)

        @jax.jit
        def program(params, x0, eps, sigma, cond):
            def at(xt, sigma, cond):
                return denoise(params, xt, sigma, cond)

            return calibration.statistics(at, x0, eps, sigma, cond, mean)

        sigmas = calibration.levels(float(x0.std()), self.levels)
        eps = calibration.matched_noise(x0, self.seed)
        found = []
        for sigma in sigmas:
            level = np.full(self.batch, sigma, np.float32)
            parts = [
                program(model.params, *self._placed(model, x0[rows], eps[rows], level, cond))
                for rows, cond in self._batches()
            ]
            parts = [sharding.to_host(part) for part in parts]
            found.append({name: np.concatenate([p[name] for p in parts]) for name in parts[0]})
        sums = {name: np.stack([each[name] for each in found]) for name in found[0]}
        return calibration.curves(sigmas, sums, x0)

    def pictures(
        self, model: Model, x0: Float[np.ndarray, "n h w c"], sigma_init: float
    ) -> dict[str, Float[np.ndarray, "n h w c"]]:
        """Of the sampler, and of one call at the proposed sigma_init, half of it and twice it."""
        rows = slice(0, min(self.batch, 10))
        cond = jax.tree.map(lambda leaf: leaf[: self.batch], self.cond)
        eps = np.random.default_rng(self.seed).standard_normal((self.batch, *x0.shape[1:]))
        denoise = jax.jit(_called(model))
        found = {"teacher": model.decode(x0[rows])}
        for times in SIGMA_INITS:
            sigma = np.full(self.batch, times * sigma_init, np.float32)
            inputs = self._placed(model, np.float32(eps * times * sigma_init), sigma, cond)
            called = sharding.to_host(denoise(model.params, *inputs))
            found[f"sigma_init = {times * sigma_init:.3g}"] = model.decode(called[rows])
        return found

    def overflow(self, model: Model) -> Finding:
        """The levels at which D is not finite, on noise of the data's scale."""
        shape = (self.count, *build.image_shape(model.config))
        deviation = model.config.teacher.sigma_data
        x0 = np.random.default_rng(self.seed).normal(0, deviation, shape).astype(np.float32)
        found = self.curves(model, x0)
        told = calibration.faults(found).get("finite", "the samples of its sampler are not finite")
        return Finding("overflow", f"{told}; compute in float32 or bfloat16.")

    def _batches(self) -> Iterator[tuple[slice, Condition]]:
        """Rows of all samples, and their conditions."""
        for start in range(0, self.count, self.batch):
            rows = slice(start, start + self.batch)
            yield rows, jax.tree.map(lambda leaf, rows=rows: leaf[rows], self.cond)

    @staticmethod
    def _placed(model: Model, *trees: Any) -> Any:
        where = sharding.batch_split(model.mesh)
        return jax.tree.map(lambda leaf: sharding.placed(leaf, where), trees)


def _called(model: Model) -> Denoise:
    """D as the model calls it: on its devices, with its guidance."""
    denoise = build.on_devices(model.denoise, model.mesh, model.config)
    return build.guided(model.config, denoise, model.config.teacher.guidance)


def _not_finite(model: Model) -> list[str]:
    """Names of the parameters that hold numbers which are not finite."""

    @jax.jit
    def finite(params):
        return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), params)

    leaves = jax.tree.leaves_with_path(sharding.to_host(finite(model.params)))
    return [jax.tree_util.keystr(path) for path, is_finite in leaves if not is_finite]


def _nothing(finding: Finding, steps: int, began: float) -> Probe:
    return Probe(None, None, (finding,), {}, {}, steps, time.monotonic() - began)


def _findings(
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


def _of_guidance(look: Look, model: Model, steps: int) -> tuple[Finding, ...]:
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


GUIDED_SLOPE = 0.5  # our choice: scales up to 2 keep it on small teachers, 5 does not


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


def _changes(config: c.Config, found: Proposal) -> dict[str, tuple[Any, str]]:
    """Fields of a config, with the reason of each value."""
    rises = f"the error rises from 2 to 98 % at sigma {found.low:.3g} to {found.high:.3g}"
    changes: dict[str, tuple[Any, str]] = {
        "generator.sigma_init": (
            found.sigma_init,
            f"{calibration.SIGMA_INIT:g} standard deviations of the data, {found.scale:.3g}",
        )
    }
    half = f"of ln(sigma); half of the error at {found.half:.3g}"
    asked = "; half and twice the generator's ends"
    for part, edge, also in (("generator", 1.0, ""), ("fake_score", BEYOND, asked)):
        changes |= {
            f"{part}.sigma.law": ("lognormal", "density of the error's rise"),
            f"{part}.sigma.mean": (found.mean, half),
            f"{part}.sigma.std": (found.std, "of ln(sigma)"),
            f"{part}.sigma.low": (found.low / edge, rises + also),
            f"{part}.sigma.high": (found.high * edge, rises + also),
        }
    if config.loss.name == "sim" and config.loss.distance == "pseudo_huber":
        changes["generator.weight"] = "uniform", "Pseudo-Huber divides by the gap itself"
        told = f"SIM's {C:g} where the data deviate by {C_OF}"
        changes["loss.c"] = C * found.scale / C_OF, told
    elif config.loss.name == "sim" and config.loss.distance == "l2_squared":
        told = "squared L2 whose weight is 1 / omega"
        changes |= {"loss.name": ("sid", told), "loss.alpha": (1.0, told)}
    return changes


def with_changes(config: c.Config, changes: dict[str, tuple[Any, str]]) -> c.Config:
    """The config as proposed; a law's options that the new one does not have are its defaults."""
    for path, (value, _) in changes.items():
        *parents, name = path.split(".")
        if name == "law":
            config = _replaced(config, parents, c.Sigma(law=value))
        else:
            config = _replaced(config, [*parents, name], value)
    return config


def _replaced(part: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    inner = _replaced(getattr(part, name), rest, value) if rest else value
    return dataclasses.replace(part, **{name: inner})


BEYOND = 2.0  # ends of the fake score's law beyond the generator's; our choice
C, C_OF = 1e-3, 0.5  # Pseudo-Huber's, of the SIM authors; standard deviation of their data


def _curves_table(found: Curves) -> str:
    header = "sigma        e/plateau  e/sigma^2  slope   trace   omega     contrast  finite"
    lines = [header]
    for row in range(0, len(found.sigma), 2):
        sigma = found.sigma[row]
        lines.append(
            f"{sigma:<12.4g} {found.share[row]:<10.3f} {found.error[row] / sigma**2:<10.3g} "
            f"{found.slope[row]:<7.3f} {found.trace[row]:<7.3g} {found.omega[row]:<9.3g} "
            f"{found.contrast[row]:<9.3f} {found.finite[row]:.3g}"
        )
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value}"
