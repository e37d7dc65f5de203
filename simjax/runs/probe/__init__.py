"""Teacher probe: `probe(model)` checks a denoiser and returns a `Probe`."""

from simjax.runs.probe.teacher_probe import LEVELS, SAMPLES, STEPS, Probe, probe

__all__ = ["LEVELS", "SAMPLES", "STEPS", "Probe", "probe"]
