"""Proposed config fields from a teacher's curves, each with its reason."""

import dataclasses
from typing import Any

from simjax import config as c
from simjax.evaluation import calibration
from simjax.evaluation.calibration import Proposal

BEYOND = 2.0  # factor by which the fake score's sigma range exceeds the generator's; our choice
C, C_OF = 1e-3, 0.5  # the SIM authors' Pseudo-Huber c; standard deviation of their data


def changes_of(config: c.Config, found: Proposal) -> dict[str, tuple[Any, str]]:
    """Maps dotted config fields to (proposed value, reason)."""
    rises = f"the error rises from 2 to 98 % at sigma {found.low:.3g} to {found.high:.3g}"
    changes: dict[str, tuple[Any, str]] = {
        "generator.sigma_init": (
            found.sigma_init,
            f"{calibration.SIGMA_INIT:g} standard deviations of the data ({found.scale:.3g})",
        )
    }
    half = f"of ln(sigma); the error reaches one half at {found.half:.3g}"
    wider = "; half and twice the generator's bounds"
    for part, edge, also in (("generator", 1.0, ""), ("fake_score", BEYOND, wider)):
        changes |= {
            f"{part}.sigma.law": ("lognormal", "fitted to the rise of the error"),
            f"{part}.sigma.mean": (found.mean, half),
            f"{part}.sigma.std": (found.std, "of ln(sigma)"),
            f"{part}.sigma.low": (found.low / edge, rises + also),
            f"{part}.sigma.high": (found.high * edge, rises + also),
        }
    if config.loss.name == "sim" and config.loss.distance == "pseudo_huber":
        changes["generator.weight"] = "uniform", "Pseudo-Huber normalises by |D_fake - D_teacher|"
        reason = f"SIM's {C:g}, for data with standard deviation {C_OF}, scaled to these data"
        changes["loss.c"] = C * found.scale / C_OF, reason
    elif config.loss.name == "sim" and config.loss.distance == "l2_squared":
        reason = "squared L2 with weight 1 / omega"
        changes |= {"loss.name": ("sid", reason), "loss.alpha": (1.0, reason)}
    return changes


def with_changes(config: c.Config, changes: dict[str, tuple[Any, str]]) -> c.Config:
    """The config with the proposed changes.

    A new sigma law resets the options of the previous one.

    >>> changed = with_changes(c.Config(), {"generator.sigma_init": (3.0, "reason")})
    >>> changed.generator.sigma_init
    3.0
    """
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
