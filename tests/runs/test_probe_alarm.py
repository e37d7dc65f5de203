"""Warnings at the start of a run and alarms during training, from its teacher's curves."""

import json

import numpy as np
import pytest

import simjax
from simjax import config as c
from simjax.evaluation import calibration
from simjax.evaluation.calibration import Curves
from simjax.runs.probe import alarm
from simjax.train import health

B, SHAPE = 0.5, (4, 4, 1)


def curves(b: float = B, **changed) -> Curves:
    """Curves of the exact denoiser of N(0, b^2)."""
    sigma = calibration.levels(b, 25)
    square = b**2 + sigma**2
    error = b**2 * sigma**2 / square
    plain = {name: np.zeros(25) for name in ("omega", "orthogonality", "bias")}
    ones = {name: np.ones(25) for name in ("slope", "trace", "finite")}
    fields = {"sigma": sigma, "error": error, "contrast": b**2 * sigma / square / b, **plain}
    fields |= ones | {"deviation": b, "variance": b**2}
    return Curves(**fields | changed)


def misses(config: c.Config) -> list[str]:
    return alarm.misses(config, curves(), calibration.propose(curves()))


def test_published_settings_give_no_warning():
    """Sigma laws of SIM, SiD and EDM, for data with standard deviation 0.5."""
    assert misses(c.Config()) == []
    config = c.Config()
    config.generator.sigma = c.Sigma(law="karras")
    assert misses(config) == []


@pytest.mark.parametrize("role", ["generator", "fake_score"])
@pytest.mark.parametrize(
    "law",
    [
        c.Sigma(mean=4.0, std=0.3),  # above the rise
        c.Sigma(mean=-6.0, std=1.0),  # below the rise
        c.Sigma(mean=-0.7, std=0.05),  # inside the rise, but covers little of it
    ],
)
def test_sigma_law_outside_the_rise_gives_a_warning(role, law):
    config = c.Config()
    getattr(config, role).sigma = law
    (warning,) = misses(config)
    assert warning.startswith(f"{role}.sigma draws") and "rises between 0.0714 and 3.5" in warning


@pytest.mark.parametrize("sigma", [0.4, 60.0])
def test_sigma_init_out_of_range_gives_a_warning(sigma):
    config = c.Config()
    config.generator.sigma_init = sigma
    (warning,) = misses(config)
    assert "sigma_init" in warning and "expected 0.5 to 50" in warning


def test_share_of_the_rise_has_its_closed_form():
    found = curves()

    def share(sigma):
        return sigma**2 / (B**2 + sigma**2)

    expected = (share(1.0) - share(0.25)) / 0.96
    assert calibration.rise_between(found, 0.25, 1.0) == pytest.approx(expected, rel=0.01)
    assert calibration.rise_between(found, 1e-9, 1e9) == pytest.approx(1.0)


HEALTHY = {
    "samples/contrast_ratio": 0.9,
    "samples/mean_drift": 0.05,
    "generator/nonfinite_examples": 0.0,
    **{f"gap/{name}": 0.02 for name in health.SIGMA_BINS},
}


@pytest.mark.parametrize(
    ("name", "scalars", "message"),
    [
        ("contrast", {"samples/contrast_ratio": 0.05}, "samples have 0.05 times"),
        ("contrast", {"samples/contrast_ratio": 1.6}, "lower the upper end of generator.sigma"),
        ("contrast", {"samples/contrast_ratio": np.nan}, "samples have nan times"),
        ("drift", {"samples/mean_drift": -0.11}, "by -0.11, expected at most 0.1"),
        (
            "gap",
            {"gap/sigma<0.8": 0.45},
            "0.45 at sigma<0.8, expected at most 0.42",
        ),  # b s / sqrt(b^2 + s^2)
        ("gap", {"gap/sigma>3.2": 0.51}, "0.51 at sigma>3.2, expected at most 0.5"),
        ("gap", {"gap/sigma>3.2": np.nan}, "nan at sigma>3.2"),
        ("finite", {"generator/nonfinite_examples": 2.0}, "2 non-finite gradients or examples"),
        ("finite", {"fake_score/nonfinite_grads": 1.0}, "1 non-finite gradients or examples"),
    ],
)
def test_alarm_is_logged_once_per_excursion(name, scalars, message):
    said = []
    raised = alarm.Alarm(curves(), c.Config(), said.append)
    assert not any(raised(HEALTHY).values()) and not said
    for _ in range(2):
        found = raised(HEALTHY | scalars)
        assert [key for key, value in found.items() if value] == [f"alarm/{name}"]
        (line,) = said
        assert line.startswith(f"alarm ({name}): ") and message in line
    assert not any(raised(HEALTHY).values())
    raised(HEALTHY | scalars)
    assert len(said) == 2


def test_before_generator_start_only_nonfinite_values_raise_alarms():
    said = []
    raised = alarm.Alarm(curves(), c.Config(), said.append)
    assert not any(raised({"fake_score/nonfinite_grads": 0.0}).values()) and not said


def test_low_one_step_contrast_lowers_the_bound():
    """A generator starts as one teacher call; at sigma_init = 2.5 its contrast here is 0.19."""
    raised = alarm.Alarm(curves(), c.Config(), [].append)
    low = 0.5 * B * 2.5 / (B**2 + 2.5**2)
    assert raised({"samples/contrast_ratio": 1.05 * low})["alarm/contrast"] == 0
    assert raised({"samples/contrast_ratio": 0.95 * low})["alarm/contrast"] == 1


def teacher(times: float = 1.0) -> simjax.Model:
    def denoise(params, xt, sigma, cond):
        square = sigma[:, None, None, None] ** 2
        return times * params["b"] ** 2 * xt / (params["b"] ** 2 + square)

    return simjax.from_function(denoise, {"b": np.float32(B)}, shape=SHAPE)


def test_begin_writes_curves_and_warns(tmp_path):
    x0 = np.random.default_rng(0).normal(0, B, (100, *SHAPE)).astype(np.float32)
    said, model = [], teacher()
    model.config.generator.sigma_init = 400.0
    cond = np.asarray(model.conditions(np.zeros(100, np.int32)))
    alarm.begin(model, x0, cond, tmp_path / "probe.json", said.append)
    (line,) = said
    assert "sigma_init = 400" in line and f"simjax probe --source={tmp_path}" in line
    found = json.loads((tmp_path / "probe.json").read_text())
    assert found["proposal"]["half"] == pytest.approx(B, rel=0.1)
    assert found["curves"]["trace"] is None and len(found["missed"]) == 1
    sigma, error = np.array(found["curves"]["sigma"]), found["curves"]["error"]
    np.testing.assert_allclose(error, B**2 * sigma**2 / (B**2 + sigma**2), rtol=0.1)


def test_begin_warns_about_a_nonfinite_teacher(tmp_path):
    x0 = np.random.default_rng(0).normal(0, B, (10, *SHAPE)).astype(np.float32)
    said, model = [], teacher(np.nan)
    cond = np.asarray(model.conditions(np.zeros(10, np.int32)))
    alarm.begin(model, x0, cond, tmp_path / "probe.json", said.append)
    assert "D is not finite" in said[0]
    assert json.loads((tmp_path / "probe.json").read_text())["curves"]["error"][0] is None
