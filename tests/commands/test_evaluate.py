"""simjax evaluate on runs, networks and images: output, files and errors."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import simjax
from simjax import config, data
from simjax.errors import ConfigError
from simjax.evaluation import images
from simjax.runs import report
from simjax.runtime import checkpoint
from tests.helpers import checkpoints, subprocesses
from tests.helpers.command import ROOT, TINY, refused, run
from tests.helpers.configs import TEACHER, load
from tests.helpers.runs import keep_best, make_run

PIXELS = "--features=pixels,,--metrics=frechet"
FOLDERS = f"{PIXELS},,--source=real,,--reference"
LINES = {
    "net": f"--source=net.pkl,,--data=digits,,{PIXELS},,--samples=40,,--batch=20,,--repeats=2,,"
    "--seed=3,,--save=samples.npz",
    "sde": f"--source=net.pkl,,--data=digits,,{PIXELS},,--samples=40,,--steps=3,,--guidance=2,,"
    "--solver=flow_sde,,--out=sde.json",
    "again": f"--source=samples.npz,,--data=digits,,{PIXELS},,--out=again.json",
    "real": "--source=real,,--reference=digits,,--features=pixels,,--out=~/real.json",
    "folder": f"{FOLDERS}=other,,--out=new/folder/m.json",
    "npz": f"{FOLDERS}=other.npz,,--out=npz.json",
    "zip": f"{FOLDERS}=other.zip,,--out=zip.json",
    "from_zip": f"{PIXELS},,--source=other.zip,,--reference=real,,--out=from_zip.json",
    "run": f"--source=run,,{PIXELS},,--samples=16,,--save=~/drawn",
    "best": f"--source=run,,{PIXELS},,--samples=16,,--network=best,,--out=best.json",
}
RUN, IMAGES = f"--source=run,,{PIXELS},,--out=x.json,,", f"{FOLDERS}=digits,,--out=x.json,,"
NET = "--source=net.pkl,,--data=digits,,--features=pixels,,--out=x.json,,"
MISTAKES = {
    "--seed=0": "expected --source=..., got nothing",
    "--source=net.pkl,,more": "got more",
    "--source=nothing-like-it": "did you mean",
    "--source=org/name": "download the folder first and pass its path: hf download org/name",
    "--source=digits": "need --reference=... (or --data=...) to compare with",
    "--source=digits,,--data=digits,,--features=clip": "'clip' is not known; known: ",
    "--source=digits,,--data=digits,,--metrics=fid": "'fid' is not known; known: ",
    "--source=digits,,--reference=none.npz,,--features=pixels": "none.npz",
    "--source=digits,,--reference=run,,--features=pixels": "run is a run or a model, expected a",
    "--source=net.pkl,,--steps=3,,--churn=40": "--churn=40: expected four numbers, e.g. --churn=",
    # Numbers.
    "--source=digits,,--samples=many": "samples",
    f"{RUN}--samples=0": "--samples=0",
    f"{RUN}--repeats=0": "--repeats=0",
    f"{RUN}--batch=0": "--batch=0",
    f"{RUN}--limit=-1": "--limit=-1",
    f"{RUN}--seed=-1": "--seed=-1",
    f"{RUN}--seed=4294967296": "--seed=4294967296",
    f"{RUN}--seed=4294967295,,--repeats=2": "the last seed of --repeats = 4294967296",
    f"{NET}--sigma_init=0": "--sigma_init=0.0: expected a positive number",
    f"{NET}--metrics=": "--metrics=[]: expected at least one name",
    # Flags that have no effect.
    f"{RUN}--steps=5": "the source is a run: --steps is for a network called once or a network "
    "with --steps. Flags that apply: --source, --network",
    f"{RUN}--sigma_init=40": "--sigma_init is for a network called once",
    f"{RUN}--churn=40,0.05,50,1": "--churn is for a network with --steps",
    f"{RUN}--split=test": "--split is for a data set",
    f"{RUN}--data=digits,,--reference=real": "--data: no effect, with a reference only the",
    f"{IMAGES}--samples=5": "the source is images in files: --samples is for a run",
    f"{IMAGES}--repeats=3": "--repeats is for a run",
    f"{IMAGES}--save=s.npz": "--save is for a run",
    f"{IMAGES}--network=best": "--network is for a run",
    "--source=digits,,--data=digits,,--steps=3": "the source is a data set: --steps is for",
    f"{NET}--network=best": "--network is for a run",
    f"{NET}--churn=40,0.05,50,1": "--churn is for a network with --steps",
    f"{NET}--guidance=2": "--guidance is for a network with --steps",
    f"{NET}--solver=euler": "--solver is for a network with --steps",
    f"{NET}--steps=3,,--solver=rk4": "rk4",
    f"{NET}--steps=3,,--sigma_init=2": "--sigma_init is for a network called once",
    "--source=net.pkl,,--samples=9": "--samples: no effect, there is no reference: add --ref",
    "--source=net.pkl,,--limit=9,,--features=pixels": "--limit, --features: no effect",
    "--source=without_best,,--network=best": "without_best has no best generator",
    # Output paths, checked before anything is evaluated.
    f"{FOLDERS}=digits,,--out=other": "--out=other is a folder, expected a file",
    f"{FOLDERS}=digits,,--out=a/": "--out=a/ is a folder, expected a file",
    f"{FOLDERS}=digits,,--out=net.pkl/m.json": "--out=net.pkl/m.json cannot be written: ",
    f"{FOLDERS}=digits,,--out=": "--out= is empty",
    f"{RUN}--save=samples.png": "--save=samples.png: expected one of NAME.npz, FOLDER/",
    f"{RUN}--save=net.pkl/in/": "--save=net.pkl/in/ cannot be written: ",
}


class Made(NamedTuple):
    """Folder with sources, and (exit message, output) of each command line."""

    folder: Path
    done: dict[str, list]

    def output(self, name):
        return subprocesses.output(self.done[LINES[name]])

    def result(self, name, path):
        self.output(name)
        return json.loads((self.folder / path).read_text())

    def distance(self, name, path):
        return self.result(name, path)["rows"][0]["metrics"]["pixels/frechet"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    checkpoints.write(folder / "net.pkl", TEACHER)
    model, _ = make_run(folder / "run", load("digits"), TEACHER)
    keep_best(folder / "run", model, step=5)
    make_run(folder / "without_best", load("digits"), TEACHER)
    real = images.as_bytes(data.open("digits").read(np.arange(100)))
    images.write_folder(folder / "real", [real[:60]])
    images.write_folder(folder / "other", [real[60:]])
    images.write_npz(folder / "other.npz", real[60:])
    with zipfile.ZipFile(folder / "other.zip", "w") as archive:
        for path in sorted((folder / "other").rglob("*.png")):
            archive.write(path, path.relative_to(folder / "other"))
    (folder / "home").mkdir()
    lines = [*LINES.values(), *MISTAKES]
    return Made(folder, subprocesses.several("evaluate", lines, folder, HOME=str(folder / "home")))


def evaluate(cwd, *flags: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "simjax", "evaluate", *flags],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
    )


def rows(path) -> list[dict]:
    return json.loads(path.read_text())["rows"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with online evaluation and a best generator."""
    workdir = tmp_path_factory.mktemp("evaluate") / "run"
    online = ["--config.evaluation.every=12", "--config.evaluation.online_samples=50"]
    done = run(workdir, *TINY, *online, "--config.evaluation.best=pixels/recall")
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.whole_runs
def test_a_runs_report_is_reproduced_exactly(finished):
    done = evaluate(ROOT, f"--source={finished}")
    assert done.returncode == 0, done.stderr
    report, again = rows(finished / "report.json"), rows(finished / "metrics.json")
    assert len(report) == 5
    for one, other in zip(report, again, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
    assert json.loads((finished / "metrics.json").read_text())["step"] == 24
    assert "classifier" in done.stdout


@pytest.mark.whole_runs
def test_online_metrics_are_logged_and_the_best_generator_is_saved(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    curve = [line for line in lines if "evaluation/pixels/frechet" in line]
    assert [line["step"] for line in curve] == [0, 12, 24]
    (kept,) = (finished / "best").iterdir()
    best = json.loads((kept / "provenance" / "metadata").read_text())
    assert kept.name == str(best["step"])
    assert best["metric"] == "pixels/recall"
    values = {line["step"]: line["evaluation/pixels/recall"] for line in curve}
    assert best["value"] == max(values.values()) == values[best["step"]]
    loaded = simjax.load(finished, network="best")
    assert checkpoint.params_sha256(loaded.params) == best["sha256"]


def test_a_network_is_evaluated_with_several_seeds_and_its_samples_saved(made):
    result = made.result("net", "metrics.json")
    assert result["seeds"] == [3, 4]
    spread = result["repeats"]["net.pkl, one call (1)"]["pixels/frechet"]
    assert len(spread["all"]) == 2
    assert spread["all"][0] != spread["all"][1]
    assert spread["minimum"] == min(spread["all"])
    assert spread["mean"] == pytest.approx(np.mean(spread["all"]))
    assert result["network"]["parameters"] > 0
    # The saved samples reproduce the first seed's metric.
    assert made.result("again", "again.json")["rows"][0]["samples"] == 40
    assert made.distance("again", "again.json") == pytest.approx(spread["all"][0], rel=1e-5)


def test_a_teacher_is_evaluated_with_guidance_and_solver_flags(made):
    rows = {row["name"]: row for row in made.result("sde", "sde.json")["rows"]}
    assert rows["teacher, SDE"]["evaluations"] == 2 * 3


def test_real_images_against_themselves(made):
    first, halves, bootstrap = made.result("real", "home/real.json")["rows"]
    assert first["metrics"]["pixels/precision"] == 1.0
    assert halves["samples"] == 898
    assert bootstrap["samples"] == 1797


def test_folder_zip_and_npz_of_the_same_images_give_the_same_metric(made):
    first, halves, bootstrap = made.result("folder", "new/folder/m.json")["rows"]
    assert (first["name"], first["samples"]) == ("real", 60)
    assert (halves["samples"], bootstrap["samples"]) == (20, 40)
    expected = first["metrics"]["pixels/frechet"]
    assert expected > 0.1
    for name in ("npz", "zip"):
        assert made.distance(name, f"{name}.json") == pytest.approx(expected, rel=1e-6)
    assert made.result("from_zip", "from_zip.json")["rows"][0]["name"] == "other.zip"
    assert made.distance("from_zip", "from_zip.json") == pytest.approx(expected, rel=1e-6)


def test_network_best_evaluates_the_best_generator(made):
    newest, best = made.result("run", "run/metrics.json"), made.result("best", "best.json")
    assert (newest["step"], best["step"]) == (7, 5)
    assert (best["metric"], best["value"]) == ("pixels/recall", 0.5)
    assert [row["name"] for row in newest["rows"]][:2] == ["generator, sim", "teacher, one call"]
    assert [row["name"] for row in best["rows"]][:2] == ["best generator, sim", "teacher, one call"]
    (a, teacher, *_), (b, same, *_) = newest["rows"], best["rows"]
    assert a["metrics"] != b["metrics"]
    assert teacher["metrics"] == same["metrics"]
    assert len(list((made.folder / "home" / "drawn").rglob("*.png"))) == 16


@pytest.mark.parametrize("line", list(MISTAKES))
def test_user_errors_print_one_message(made, line):
    message, output = made.done[line]
    assert MISTAKES[line] in message  # SystemExit with a text has exit status 1
    assert message.startswith("simjax: ")
    assert len(message.splitlines()) == 1
    assert "written to" not in output and "frechet" not in output
    assert not (made.folder / "x.json").exists() and not list(made.folder.rglob("*.tmp"))


def test_rows_with_equal_names_and_different_nfe_stay_separate():
    def found(seed, *values):
        rows = [
            {"name": "teacher", "evaluations": calls, "metrics": {"pixels/frechet": value}}
            for calls, value in zip((35, 17), values, strict=True)
        ]
        return {"seed": seed, "rows": rows}

    repeats = report.summary([found(0, 1.0, 5.0), found(1, 2.0, 6.0)])["repeats"]
    assert repeats["teacher (35)"]["pixels/frechet"]["all"] == [1.0, 2.0]
    assert repeats["teacher (17)"]["pixels/frechet"]["mean"] == 5.5


def test_a_config_round_trips_through_json():
    made = config.Config(network=config.AdmUNet(channels=8), steps=7)
    made.evaluation.features = ("pixels",)
    made.generator.sigma.high = 3.0
    assert config.from_dict(json.loads(json.dumps(config.to_dict(made)))) == made
    with pytest.raises(ConfigError, match="Config has no field stepz"):
        config.from_dict({"stepz": 1})


@pytest.mark.whole_runs
def test_online_evaluation_without_a_reference_is_rejected(tmp_path):
    flags = [*TINY, "--config.evaluation.every=12", "--config.evaluation.best=inception/fid"]
    assert "evaluation.best = 'inception/fid' is not measured; known: pixels/frechet" in refused(
        run(tmp_path / "run", *flags)
    )
