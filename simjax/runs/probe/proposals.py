"""Fields of a config that follow from a teacher's curves, each with its reason."""

import dataclasses
from typing import Any

from simjax import config as c
from simjax.evaluation import calibration
from simjax.evaluation.calibration import Proposal

BEYOND = 2.0  # ends of the fake score's law beyond the generator's; our choice
C, C_OF = 1e-3, 0.5  # Pseudo-Huber's, of the SIM authors; standard deviation of their data


def changes_of(config: c.Config, found: Proposal) -> dict[str, tuple[Any, str]]:
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
