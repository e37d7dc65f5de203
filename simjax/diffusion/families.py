"""Teacher families: EDM networks, DDPMs and flows as denoisers in sigma-space.

To add one, write its coefficients (see diffusion/precondition.py) and add it to FAMILIES. Apart
from the tables in porting/, no other code depends on family names.

References: EDM, arXiv:2206.00364, table 1; DiT, arXiv:2212.09748; PixArt-alpha, arXiv:2310.00426;
flow matching with logit-normal times: SD3, arXiv:2403.03206; SiT, arXiv:2401.08740.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from simjax.diffusion import precondition
from simjax.diffusion.precondition import Coefficients, Precondition


@dataclasses.dataclass(frozen=True)
class Family:
    """Preconditioning, default sampler and training noise distribution of a family.

    Args:
      coefficients: sigma (b,) -> Coefficients; it may take the option sigma_data.
      ladder, solver: default sampler, keys of schedule.LADDERS and sampler.SOLVERS.
      ladder_options: defaults for fields of config.Sampler.
      law, law_options: training distribution of sigma, a key of schedule.SIGMA_LAWS.
      weight: training weight, a key of noise.WEIGHTS.
      learned_variance: the network also outputs variances, which D drops; used if the network does
        not set learn_sigma.

    >>> vp = FAMILIES["vp"]
    >>> vp.ladder, vp.solver, vp.weight, vp.reads_sigma_data
    ('vp', 'heun', 'score', False)
    """

    coefficients: Callable[..., Coefficients]
    ladder: str = "karras"
    solver: str = "heun"
    ladder_options: Mapping[str, float] = dataclasses.field(default_factory=dict)
    law: str = "lognormal"
    law_options: Mapping[str, float] = dataclasses.field(default_factory=dict)
    weight: str = "edm"
    learned_variance: bool = False

    @property
    def reads_sigma_data(self) -> bool:
        """Whether the coefficients depend on the data's standard deviation."""
        return "sigma_data" in inspect.signature(self.coefficients).parameters

    def precondition(self, sigma_data: float) -> Precondition:
        """sigma -> Coefficients, for data of this standard deviation."""
        if not self.reads_sigma_data:
            return self.coefficients
        return functools.partial(self.coefficients, sigma_data=sigma_data)


def _flow(coefficients: Callable[..., Coefficients], **others: Any) -> Family:
    """A flow: Euler steps of equal time, logit-normal training times."""
    plain = {"ladder": "flow", "solver": "euler", "weight": "flow"}
    return Family(coefficients, **plain | {"law_options": {"mean": 0.0, "std": 1.0}} | others)


FAMILIES: dict[str, Family] = {
    "edm": Family(precondition.edm),
    "vp": Family(precondition.vp, ladder="vp", law="vp", weight="score"),
    "ve": Family(
        precondition.ve,
        ladder="ve",
        ladder_options={"sigma_min": 0.02, "sigma_max": 100.0},  # EDM table 1
        law="ve",
        weight="score",
    ),
    "iddpm": Family(
        precondition.iddpm,
        ladder="iddpm",
        law="iddpm",
        weight="score",
        learned_variance=True,
    ),
    "ddpm_linear": Family(
        precondition.ddpm_linear,
        ladder="ddpm_linear",
        solver="dpm_solver",
        law="ddpm_linear",
        weight="score",
        learned_variance=True,
    ),
    "flow": _flow(precondition.flow),
    "flow1000": _flow(functools.partial(precondition.flow, time_scale=1000.0)),  # SANA, SD3
    "sit": _flow(
        precondition.sit,
        law="uniform_time",
        law_options={},
        learned_variance=True,
    ),
    "sit_gvp": _flow(
        precondition.sit_gvp,
        law="uniform_time",
        law_options={},
        weight="gvp",
        learned_variance=True,
    ),
}
