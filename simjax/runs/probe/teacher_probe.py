"""Teacher probe: proposes settings and detects wrong calls, without data.

It draws samples with the teacher's own sampler, adds noise at every level and computes the curves
of evaluation/calibration.py. From these follow settings of a distillation and faults of the call.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from simjax.evaluation import calibration
from simjax.evaluation.calibration import Curves, Proposal
from simjax.models.model import Model
from simjax.runs.probe import diagnosis, labels
from simjax.runs.probe.diagnosis import Finding
from simjax.runs.probe.look import Look, conditions
from simjax.runs.probe.proposals import changes_of
from simjax.runtime import settings, values
from simjax.typing import Float

SAMPLES, STEPS, LEVELS = 256, 32, 25  # our choice


@dataclasses.dataclass(frozen=True)
class Probe:
    """Result of a probe.

    Attributes:
      curves, proposal: None if D is not finite.
      findings: faults of the call; empty if none was found.
      changes: dotted config field -> (proposed value, reason).
      images: "teacher" for its sampler, "sigma_init = ..." for one-step samples.
      steps: steps of the teacher's sampler.
      seconds: wall time of the probe.
    """

    curves: Curves | None
    proposal: Proposal | None
    findings: tuple[Finding, ...]
    changes: dict[str, tuple[Any, str]]
    images: dict[str, Float[np.ndarray, "n h w c"]]
    steps: int
    seconds: float

    def table(self) -> str:
        """Human-readable curves, proposals with reasons, and findings."""
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
        lines += [f"WARNING ({found.name}): {found.message}" for found in self.findings]
        if not self.findings:
            lines.append("No fault found: its samples are consistent with how it is called.")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to probe.json."""
        return {
            "curves": self.curves and calibration.to_dict(self.curves),
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
    prompts: Sequence[str] = (),
) -> Probe:
    """Probes a teacher: calibration curves, proposed settings, faults of the call.

        found = simjax.probe(simjax.load("edm-cifar10-32x32-cond-vp"))
        print(found.table())
        found.proposal.sigma_init, found.findings

    Draws samples and measures e(sigma) = mean (x0 - D(x0 + sigma eps))^2; needs no data set.

    Args:
      model: the teacher.
      samples: number of samples to draw.
      steps: steps of the teacher's sampler.
      levels: number of noise levels, scaled to the data.
      seed: random seed.
      explain: if the call is wrong, try corrections; each costs as much as the probe itself.
      prompts: prompts (cycled) of a text-to-image model with an encoder; a run has its captions.

    Returns:
      A Probe: `table()` for printing, `proposal` (sigma_init, sigma distributions, loss options),
      `findings` (faults; empty if there are none), `curves`.

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
    look = Look(plain, conditions(model, samples, prompts), levels, seed)
    if broken := diagnosis.not_finite(model):
        message = f"{broken[0]} and {len(broken) - 1} more" if broken[1:] else broken[0]
        message += ": parameters are not finite; port the weights again."
        return _nothing(Finding("weights", message), steps, began)
    x0 = look.drawn(plain, steps)
    if x0 is None:
        return _nothing(diagnosis.diverging(look, plain, steps, explain), steps, began)
    curves = look.curves(plain, x0)
    findings = diagnosis.findings(look, plain, curves, steps, explain)
    if model.config.teacher.guidance != 1 and not findings:
        findings = diagnosis.of_guidance(look, model, steps)
    if not curves.is_finite:
        return dataclasses.replace(_nothing(findings[0], steps, began), curves=curves)
    proposal = calibration.propose(curves)
    if not findings and (message := labels.fault(look, plain, x0, proposal.half)):
        findings = (Finding("labels", message),)
    images = look.pictures(model, x0, proposal.sigma_init)
    seconds = time.monotonic() - began
    changes = changes_of(model.config, proposal)
    return Probe(curves, proposal, findings, changes, images, steps, seconds)


def _nothing(finding: Finding, steps: int, began: float) -> Probe:
    return Probe(None, None, (finding,), {}, {}, steps, time.monotonic() - began)


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
