"""Resuming runs: which config fields may change, and bitwise-equal continuation."""

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from simjax import config
from simjax.errors import ConfigError
from simjax.runs import distill, real, resume
from simjax.runtime import checkpoint, owner, processes
from tests.helpers import checkpoints
from tests.helpers.configs import TEACHER, published

STEPS = 6


def tiny(source, **fields) -> config.Config:
    """A run with constant learning rates and a checkpoint halfway."""
    every = {"log_every": 1, "sample_every": 3, "checkpoint_every": 3}
    return published(source, **{"steps": STEPS} | every | fields)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A teacher's file and the directory of a finished run with all its checkpoints."""
    where = tmp_path_factory.mktemp("finished")
    checkpoints.write(where / "net.pkl", TEACHER)
    distill.distill(tiny(where / "net.pkl", keep_checkpoints=10), str(where / "run"))
    return where / "net.pkl", where / "run"


def tables(field: str) -> list[str]:
    """Names of the tables in resume.py that contain a field."""
    found = [name for name in ("FREE", "MEASURED", "DATA", "FIXED") if in_table(name, field)]
    return found + ["STEPS"] * (field == resume.STEPS)


def in_table(name: str, field: str) -> bool:
    return resume.holds(getattr(resume, name), field)


@pytest.mark.parametrize("field", config.known_fields())
def test_every_field_is_in_exactly_one_table(field):
    assert len(tables(field)) == 1, (
        f"{field}: put it into one of the tables of simjax/runs/resume.py"
    )


def test_the_tables_list_only_existing_fields():
    fields = config.known_fields()
    for name in (*resume.FREE, *resume.MEASURED, *resume.DATA, *resume.FIXED):
        assert any(field == name or field.startswith(f"{name}.") for field in fields), name


def plan(directory, current: config.Config) -> resume.Plan:
    return resume.plan(resume.epath.Path(directory), current)


@pytest.fixture
def unfinished(finished, tmp_path):
    """A copy of the run, stopped halfway."""
    source, directory = finished
    shutil.copytree(directory, tmp_path / "run")
    (tmp_path / "run" / "report.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(STEPS))
    return source, tmp_path / "run"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 5),
        ("batch", 16),
        ("compute_dtype", "bfloat16"),
        ("dropout", 0.5),
        ("generator.optim.lr", 1.0),
        ("fake_score.sigma.mean", 1.0),
        ("loss.c", 1.0),
        ("teacher.guidance", 2.0),
        ("generator.source", "other.pkl"),
        ("real.source", "digits"),
        ("adversarial.start", 7),
    ],
)
def test_a_change_of_a_fixed_field_is_refused(unfinished, field, value):
    source, directory = unfinished
    with pytest.raises(ConfigError, match=f"\n  {field}: .* -> {value!r}\n.*--workdir"):
        plan(directory, tiny(source, **{field: value, "log_every": 4}))


def test_reference_data_may_change_but_training_data_may_not(unfinished):
    source, directory = unfinished
    assert plan(directory, tiny(source, **{"data.source": "digits"})).has_work
    written = json.loads((directory / "config.json").read_text())
    trained = {"source": "", "steps": 2}
    values = written | {"teacher": written["teacher"] | trained}
    values["network"] = config.describe(TEACHER)
    (directory / "config.json").write_text(json.dumps(values))
    changed = config.from_dict(values | {"data": {"source": "digits"}})
    with pytest.raises(ConfigError, match=r"\n  data.source: '' -> 'digits'\n"):
        plan(directory, changed)


def test_steps_may_change_but_not_below_the_steps_done(unfinished):
    source, directory = unfinished
    for steps in (3, 5, 100):
        assert plan(directory, tiny(source, steps=steps)).has_work
    with pytest.raises(ConfigError, match="steps: 6 -> 2, but 3 are done"):
        plan(directory, tiny(source, steps=2))


@pytest.mark.parametrize("who", ["generator", "fake_score"])
def test_steps_are_fixed_if_a_learning_rate_decays(unfinished, who):
    source, directory = unfinished
    decaying = {f"{who}.optim.final_lr": 0.1}
    rewrite(directory, tiny(source, **decaying))
    with pytest.raises(ConfigError, match=f"{who}.optim.final_lr = 0.1.*generator.source"):
        plan(directory, tiny(source, steps=100, **decaying))
    shutil.rmtree(directory / "checkpoints")  # before the first checkpoint steps may change
    assert plan(directory, tiny(source, steps=100, **decaying)).has_work


def rewrite(directory, options: config.Config) -> None:
    (directory / "config.json").write_text(json.dumps(config.to_dict(options)))


def test_new_fields_take_their_defaults_in_an_older_config(unfinished):
    source, directory = unfinished
    values = json.loads((directory / "config.json").read_text())
    del values["checkpoint_limit"], values["loss"]["rate"], values["keep_checkpoints"]
    (directory / "config.json").write_text(json.dumps(values))
    assert plan(directory, tiny(source)).changed == ()


def test_invalid_json_is_refused(unfinished):
    source, directory = unfinished
    (directory / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON.*--workdir"):
        plan(directory, tiny(source))


def test_steps_per_call_is_reduced_to_divide_the_checkpoint_step(unfinished):
    source, directory = unfinished
    said = []
    for given, expected in ((1, 1), (3, 3), (6, 3), (2, 1), (4, 1)):  # with 3 steps done
        options = tiny(source, steps_per_call=given)
        found = resume.aligned(options, resume.epath.Path(directory), said.append)
        assert found.steps_per_call == expected
    assert len(said) == 3 and "steps_per_call = 3 instead of 6" in said[0]


def read(directory, name: str = "report.json") -> dict:
    return json.loads((directory / name).read_text())


def logged(directory) -> list[int]:
    return [json.loads(line)["step"] for line in (directory / "metrics.jsonl").open()]


def test_a_finished_run_is_extended_with_other_settings_bitwise(finished, tmp_path, capsys):
    # The fixture's run cut back to step 3, as if it had ended there.
    source, complete = finished
    directory = tmp_path / "run"
    shutil.copytree(complete, directory)
    shutil.rmtree(directory / "checkpoints" / str(STEPS))
    (directory / "samples" / f"generator_{STEPS:08d}.png").unlink()
    rewrite(directory, tiny(source, steps=3))
    changed = {
        "steps_per_call": 2,  # does not divide the 3 steps done
        "checkpoint_every": 2,
        "log_every": 2,
        "sample_every": 6,
        "keep_checkpoints": 1,
        "grid": 3,
        "evaluation.batch": 5,
    }
    distill.distill(tiny(source, **changed), str(directory))
    said = capsys.readouterr().out
    for part in ("steps: 3 -> 6", "keep_checkpoints: 2 -> 1", "grid: 2 -> 3"):
        assert said.count(part) == 1
    assert "steps_per_call = 1 instead of 2" in said
    assert "continuing from step 3" in said
    assert read(directory)["generator_sha256"] == read(complete)["generator_sha256"]
    assert read(directory, "report_before.json") == read(complete)
    assert read(directory, "config.json")["steps_per_call"] == 2
    assert logged(directory) == [1, 2, 3, 4, 6]
    assert checkpoint.steps_in(resume.epath.Path(directory / "checkpoints")) == [6]
    strip = np.asarray(Image.open(directory / "samples" / "progress.png"))
    assert strip.shape == (2 * 72, 3 * 72)  # step 6 and the teacher; earlier grids were 2 x 2
    assert not list(directory.glob("owner*"))


def zipped(path, shape, count: int) -> None:
    """An EDM zip of random images with ten classes."""
    rng, (side, _, channels) = np.random.default_rng(0), shape
    labels = rng.integers(0, 10, count)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            pixels = rng.integers(0, 256, (side, side, channels), np.uint8)
            content = io.BytesIO()
            Image.fromarray(pixels.squeeze()).save(content, "PNG")
            archive.writestr(f"00000/img{number:08d}.png", content.getvalue())
        entries = [[f"00000/img{n:08d}.png", int(label)] for n, label in enumerate(labels)]
        archive.writestr("dataset.json", json.dumps({"labels": entries}))


@pytest.mark.whole_runs
@pytest.mark.parametrize("most", [2**28, 0], ids=["on the device", "prefetched"])
def test_a_run_with_real_images_resumes_bitwise(finished, tmp_path, monkeypatch, most):
    """SiDA on a zip of 5,000 images."""
    monkeypatch.setattr(real, "MOST_ON_DEVICE", most)
    source, _ = finished
    zipped(tmp_path / "images.zip", TEACHER.shape, 5000)
    fields = {"real.source": f"zip:{tmp_path / 'images.zip'}", "loss.name": "sid"}
    fields |= {"adversarial.fake_score_scale": 1.0, "adversarial.generator_scale": 0.1}
    options = tiny(source, **fields)
    distill.distill(options, str(tmp_path / "run"))
    expected = read(tmp_path / "run")
    (tmp_path / "run" / "report.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(STEPS))
    distill.distill(options, str(tmp_path / "run"))
    assert read(tmp_path / "run")["generator_sha256"] == expected["generator_sha256"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    seen = {name.partition("/")[0] for line in lines for name in line}
    assert {"logit_real", "logit_generated"} <= seen
    assert all(0 <= line["fake_score/accuracy"] <= 1 for line in lines)


@pytest.mark.whole_runs
@pytest.mark.parametrize("renoise", ["fresh", "ddim"])
def test_a_four_step_generator_resumes_bitwise(finished, tmp_path, renoise):
    source, _ = finished
    options = tiny(source, **{"generator.steps": 4, "generator.renoise": renoise})
    distill.distill(options, str(tmp_path))
    expected = read(tmp_path)
    assert [row["evaluations"] for row in expected["rows"]][:2] == [4, 4]
    (tmp_path / "report.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / str(STEPS))
    distill.distill(options, str(tmp_path))
    assert read(tmp_path)["generator_sha256"] == expected["generator_sha256"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    seen = {name for line in lines for name in line if "/k=" in name}
    assert len(seen) >= 3 * 2 and {name.partition("/")[0] for name in seen} == {
        "contrast",
        "distance",
        "gap",
    }


def test_a_finished_run_is_evaluated_again_with_new_evaluation_settings(finished, tmp_path, capsys):
    source, complete = finished
    directory = tmp_path / "run"
    shutil.copytree(complete, directory)
    options = tiny(source, keep_checkpoints=10, **{"evaluation.teacher_steps": (2, 3)})
    distill.distill(options, str(directory))
    assert [row["evaluations"] for row in read(directory)["rows"]] == [1, 1, 3, 5]
    assert read(directory)["generator_sha256"] == read(complete)["generator_sha256"]
    assert logged(directory) == logged(complete)
    distill.distill(options, str(directory))
    assert capsys.readouterr().out.count("is finished") == 1


def test_a_finished_run_prints_its_report_despite_free_changes(finished, monkeypatch, capsys):
    source, directory = finished
    before = (directory / "config.json").read_bytes()
    monkeypatch.setattr(distill, "_distill", lambda *_: pytest.fail("it is finished"))
    lock = owner.Lock(directory)  # printing a report needs no lock
    assert lock.attempt()
    distill.distill(tiny(source, remat="blocks", accumulate=2, log_every=1), str(directory))
    lock.release()
    assert "is finished" in capsys.readouterr().out
    assert (directory / "config.json").read_bytes() == before


def test_a_finished_run_without_checkpoints_cannot_be_extended(finished, tmp_path):
    source, complete = finished
    directory = tmp_path / "run"
    shutil.copytree(complete, directory)
    shutil.rmtree(directory / "checkpoints")
    with pytest.raises(ConfigError, match="checkpoints are gone.*steps: 6 -> 9.*--workdir"):
        plan(directory, tiny(source, steps=9))


def test_a_second_program_is_refused_and_writes_nothing(finished, tmp_path):
    source, _ = finished
    lock = owner.Lock(tmp_path)
    assert lock.attempt()
    with pytest.raises(ConfigError, match="belongs to another program, process"):
        distill.distill(tiny(source), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [owner.NAME]
    lock.release()


def test_a_run_can_start_from_the_generator_of_another(finished, tmp_path):
    source, complete = finished
    options = tiny(source, steps=2, **{"generator.source": str(complete)})
    started = []

    def stop(training, state, *_):
        started.append(checkpoint.params_sha256(state.generator))
        raise processes.Preempted(0)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(processes.Preempted):
        patch.setattr(distill, "_distilled", stop)
        distill.distill(options, str(tmp_path / "run"))
    assert started == [read(complete)["generator_sha256"]]
