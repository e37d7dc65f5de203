"""The probe of a teacher: `probe` looks, and says what it found, as a `Probe`."""

from simjax.runs.probe.teacher_probe import LEVELS, SAMPLES, STEPS, Probe, probe

__all__ = ["LEVELS", "SAMPLES", "STEPS", "Probe", "probe"]
