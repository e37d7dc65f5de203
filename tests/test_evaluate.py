"""python -m simjax.evaluate: runs, networks, images; what it prints, writes and refuses."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from simjax import config, data, report
from simjax.evaluation import images
from tests.helpers import checkpoints
from tests.helpers.command import ROOT, TINY, refused, run
from tests.test_sources import NETWORK


def evaluate(cwd, *flags: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "simjax.evaluate", *flags],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
    )


def rows(path) -> list[dict]:
    return json.loads(path.read_text())["rows"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that measured its generator on the way, and kept the best."""
    workdir = tmp_path_factory.mktemp("evaluate") / "run"
    online = ["--config.evaluation.every=12", "--config.evaluation.online_samples=50"]
    done = run(workdir, *TINY, *online, "--config.evaluation.best=pixels/recall")
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.whole_runs
def test_a_runs_report_comes_out_again_exactly(finished):
    done = evaluate(ROOT, f"--source={finished}")
    assert done.returncode == 0, done.stderr
    report, again = rows(finished / "report.json"), rows(finished / "metrics.json")
    assert len(report) == 5
    for one, other in zip(report, again, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
    assert json.loads((finished / "metrics.json").read_text())["step"] == 24
    assert "classifier" in done.stdout


@pytest.mark.whole_runs
def test_curves_and_the_best_generator_are_kept(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    curve = [line for line in lines if "evaluation/pixels/frechet" in line]
    assert [line["step"] for line in curve] == [0, 12, 24]
    (kept,) = (finished / "best").iterdir()
    best = json.loads((kept / "provenance" / "metadata").read_text())
    assert kept.name == str(best["step"])
    assert best["metric"] == "pixels/recall"
    values = {line["step"]: line["evaluation/pixels/recall"] for line in curve}
    assert best["value"] == max(values.values()) == values[best["step"]]


def test_a_network_is_measured_with_several_seeds_and_its_images_are_kept(tmp_path):
    checkpoints.write(tmp_path / "net.pkl", NETWORK)
    flags = ["--data=digits", "--features=pixels", "--metrics=frechet", "--samples=40"]
    flags += ["--batch=20", "--repeats=2", "--seed=3", "--save=samples.npz"]
    done = evaluate(tmp_path, "--source=net.pkl", *flags)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert result["seeds"] == [3, 4]
    spread = result["repeats"]["net.pkl, one call (1)"]["pixels/frechet"]
    assert len(spread["all"]) == 2
    assert spread["all"][0] != spread["all"][1]
    assert spread["minimum"] == min(spread["all"])
    assert spread["mean"] == pytest.approx(np.mean(spread["all"]))
    assert result["network"]["parameters"] > 0
    # The images that were kept give the first seed's number.
    flags = ["--data=digits", "--features=pixels", "--metrics=frechet", "--out=again.json"]
    again = evaluate(tmp_path, "--source=samples.npz", *flags)
    assert again.returncode == 0, again.stderr
    first = rows(tmp_path / "again.json")[0]
    assert first["samples"] == 40
    assert first["metrics"]["pixels/frechet"] == pytest.approx(spread["all"][0], rel=1e-5)


def test_real_images_against_themselves(tmp_path):
    dataset = data.open("digits")
    images.write_folder(tmp_path / "real", [images.as_bytes(dataset.read(np.arange(60)))])
    flags = ["--reference=digits", "--features=pixels", "--out=out.json"]
    done = evaluate(tmp_path, f"--source={tmp_path / 'real'}", *flags)
    assert done.returncode == 0, done.stderr
    first, halves, bootstrap = rows(tmp_path / "out.json")
    assert first["metrics"]["pixels/precision"] == 1.0
    assert halves["samples"] == 898
    assert bootstrap["samples"] == 1797


def test_rows_of_one_name_and_other_evaluations_stay_apart():
    def found(seed, *values):
        rows = [
            {"name": "teacher", "evaluations": calls, "metrics": {"pixels/frechet": value}}
            for calls, value in zip((35, 17), values, strict=True)
        ]
        return {"seed": seed, "rows": rows}

    repeats = report.summary([found(0, 1.0, 5.0), found(1, 2.0, 6.0)])["repeats"]
    assert repeats["teacher (35)"]["pixels/frechet"]["all"] == [1.0, 2.0]
    assert repeats["teacher (17)"]["pixels/frechet"]["mean"] == 5.5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected --source=..., got nothing"),
        (["--source=net.pkl", "more"], "got more"),
        (["--source=nothing-like-it"], "did you mean"),
        (["--source=digits"], "need --reference=... (or --data=...)"),
        (["--source=digits", "--data=digits", "--features=clip"], "'clip' is not known; known: "),
        (["--source=digits", "--data=digits", "--metrics=fid"], "'fid' is not known; known: "),
        (["--source=digits", "--reference=none.npz", "--features=pixels"], "none.npz"),
        (["--source=digits", "--samples=many"], "samples"),
        (["--source=NETWORK", "--churn=40"], "is not four numbers, as in --churn="),
    ],
)
def test_mistakes_get_one_message(flags, message, tmp_path):
    checkpoints.write(tmp_path / "net.pkl", NETWORK)
    flags = [flag.replace("NETWORK", "net.pkl") for flag in flags]
    assert message in refused(evaluate(tmp_path, *flags))


def test_a_config_comes_back_from_its_file():
    made = config.Config(network=config.AdmUNet(channels=8), steps=7)
    made.evaluation.features = ("pixels",)
    made.generator.sigma.high = 3.0
    assert config.from_dict(json.loads(json.dumps(config.to_dict(made)))) == made
    with pytest.raises(config.ConfigError, match="Config has no field stepz"):
        config.from_dict({"stepz": 1})


@pytest.mark.whole_runs
def test_online_measurement_needs_something_to_compare_with(tmp_path):
    flags = [*TINY, "--config.evaluation.every=12", "--config.evaluation.best=inception/fid"]
    assert "evaluation.best = 'inception/fid' is not measured; known: pixels/frechet" in refused(
        run(tmp_path / "run", *flags)
    )
