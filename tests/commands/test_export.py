"""simjax export: exports work without simjax, and damaged files are detected."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import yaml

import simjax
from simjax import config
from simjax.errors import ConfigError
from simjax.evaluation.evaluator import Row
from simjax.export import formats, stablehlo
from simjax.models import build, exported, samplers
from simjax.models.model import Model
from simjax.porting.maps import pixart, rules
from simjax.runs import report
from simjax.runtime import checkpoint
from simjax.typing import Caption
from tests.helpers import checkpoints, subprocesses
from tests.helpers.configs import NCSNPP, TEACHER, load
from tests.helpers.runs import keep_best, make_run, random_weights
from tests.helpers.transformer_files import CONFIG, write_folder

pytestmark = pytest.mark.whole_runs

ALONE = """
import json, sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("simjax", "flax", "safetensors", "tensorflow"):
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Nothing())
sys.path.insert(0, "")
import numpy as np
from load_generator import generate
given = np.load("given.npz")
made = {count: generate(*[given[key][:int(count)] for key in given.files]) for count in ("1", "4")}
np.savez("made.npz", **made)
assert not {"simjax", "flax", "safetensors"} & set(sys.modules)
"""
SIZES = {"resolution": 8, "width": 48, "depth": 2, "heads": 3}
PIXART = config.PixArt(**SIZES, caption_channels=20, caption_length=0)
DIT = config.DiT(**SIZES, label_dim=5, time_steps=127)
ADM = config.AdmUNet(
    resolution=8,
    label_dim=3,
    channels=32,
    channel_mult=(1, 2),
    blocks=1,
    attention_resolutions=(4,),
)
LINES = {
    "run": "--source=run,,--out=made/digits,,--format=stablehlo,edm",
    "best": "--source=run,,--network=best,,--out=of_best",
    "teacher": "--source=run,,--network=teacher,,--out=of_teacher",
    "pkl": "--source=net.pkl,,--sigma_init=1.25,,--out=pkl,,--format=edm",
    "again": "--source=made/digits,,--out=again",
    "pixart": "--source=pixart,,--out=latents,,--format=diffusers,stablehlo",
}
MISTAKES = {
    "--out=x": "expected --source=..., got nothing",
    "--source=run": "--out=: expected a folder on a local disk",
    "--source=run,,--out=gs://bucket/x": "--out=gs://bucket/x: expected a folder on a local disk",
    "--source=run,,--out=run": "--out=run is a run directory",
    "--source=run,,--out=net.pkl/inside": "--out=net.pkl/inside cannot be written",
    "--source=run,,--out=x,,--format=onnx": "--format=onnx: expected some of safetensors, edm",
    "--source=run,,--out=x,,--format=": "--format=: expected some of safetensors, edm",
    "--source=run,,--out=x,,--format=diffusers": "--format=diffusers does not support SongUNet "
    "with precondition 'edm'; supported: DiT, PixArt with ddpm_linear",
    "--source=pixart,,--out=x,,--format=edm": "PixArt with precondition 'ddpm_linear' is not a "
    "denoiser of the EDM release, which has SongUNet, AdmUNet with edm, vp, ve, iddpm",
    "--source=net.pkl,,--out=x,,--network=teacher": "--network is for a run. Flags that apply: --s",
    "--source=net.pkl,,--out=x,,--network=generator": "--network is for a run. Flags that apply: ",
    "--source=run,,--out=net.pkl": "--out=net.pkl is a file, expected a folder",
    "--source=run,,--out=x,,--sigma_init=nan": "--sigma_init=nan: expected a positive number",
    "--source=nothing-like-it,,--out=x": "did you mean",
}


class Made(NamedTuple):
    """Folder with sources and exports, the run's networks, and each command line's output."""

    folder: Path
    model: Model
    generator: Any
    best: Any
    done: dict[str, list]

    def output(self, name):
        return subprocesses.output(self.done[LINES[name]])

    def card(self, path):
        return (self.folder / path / "README.md").read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    model, generator = make_run(folder / "run", load("digits"), TEACHER)
    best = keep_best(folder / "run", model, step=5)
    rows = [Row("generator, sim", 1, 100, 2.0, {"pixels/frechet": 0.125})]
    (folder / "run" / "report.json").write_text(json.dumps(report.result(rows, None, 0)))
    checkpoints.write(folder / "net.pkl", TEACHER)
    options = config.complete(config.Config(), PIXART, "ddpm_linear", 1.0)
    tensors = rules.export(pixart.DIFFUSERS, random_weights(options, 0), PIXART.depth)
    write_folder(folder / "pixart", tensors, CONFIG)
    done = subprocesses.several("export", [*LINES.values(), *MISTAKES], folder)
    return Made(folder, model, generator, best, done)


def alone(folder, **given):
    """Samples of an export in batches of 1 and 4, without simjax."""
    np.savez(folder / "given.npz", **given)
    environment = subprocesses.environment(PYTHONPATH="")
    command = [sys.executable, "-c", ALONE]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert run.returncode == 0, run.stderr
    with np.load(folder / "made.npz") as found:
        return dict(found)


def noise(count, shape):
    return np.random.default_rng(0).standard_normal((count, *shape), np.float32)


def live(model, params):
    """The sampler of simjax sample."""
    sample = samplers.generator_sampler(model.denoise, model.config, model.mesh)
    return lambda z, cond: sample(params, z, cond, None)


def assert_close(ours, expected, tolerance=1e-6):
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() / np.abs(expected).max() <= tolerance


def test_an_export_is_sampled_evaluated_and_exported_like_its_run(made):
    drawn = "--source={},,--count=4,,--out={}"
    lines = [drawn.format("run", "a.npz"), drawn.format("made/digits", "b.npz")]
    for result in subprocesses.several("sample", lines, made.folder).values():
        subprocesses.output(result)
    expected, found = (np.load(made.folder / name)["arr_0"] for name in ("a.npz", "b.npz"))
    np.testing.assert_array_equal(found, expected)
    (measured,) = subprocesses.several("evaluate", ["--source=made/digits"], made.folder).values()
    assert "made/digits, one call" in subprocesses.output(measured)
    made.output("again")
    once, twice = ((made.folder / path / "model.safetensors") for path in ("made/digits", "again"))
    assert twice.read_bytes() == once.read_bytes()
    assert "simjax exported, `made/digits`" in made.card("again")


def test_flags_that_choose_a_network_are_rejected_for_an_export(made):
    lines = {
        "--source=made/digits,,--network=best": "--network is for a run's",
        "--source=made/digits,,--family=dit": "--family is for published weights",
    }
    done = subprocesses.several("sample", [*lines], made.folder)
    assert all(message in done[line][0] for line, message in lines.items()), done


def test_the_stablehlo_program_runs_without_simjax_on_any_batch(made):
    z, classes = noise(4, (8, 8, 1)), np.array([3, 0, -1, 9], np.int32)
    found = alone(made.folder / "made" / "digits", z=z, classes=classes)
    cond = np.eye(11, 10, dtype=np.float32)[classes]  # the last row, for class -1, is zero
    for count in (1, 4):
        expected = live(made.model, made.generator)(z[:count], cond[:count])
        assert_close(found[f"{count}"], expected)


def test_the_stablehlo_program_of_a_text_conditioned_network(made):
    rng = np.random.default_rng(1)
    z, embedding = noise(4, (8, 8, 4)), rng.standard_normal((4, 120, 20), np.float32)
    mask = np.arange(120) < np.array([[1], [7], [60], [120]])
    found = alone(made.folder / "latents", z=z, embedding=embedding, mask=mask)
    options = config.complete(config.Config(), PIXART, "ddpm_linear", 1.0)
    sample = formats.sampler(options, *build.denoiser(options, random_weights(options, 0)))
    assert_close(found["4"], sample(z, Caption(embedding, mask, np.zeros(4, bool)), None))
    assert found["1"].shape == (1, 8, 8, 4)


def test_the_loader_has_at_most_twenty_lines(made):
    loader = (made.folder / "made" / "digits" / "load_generator.py").read_text()
    assert len(loader.splitlines()) <= 20
    assert max(map(len, loader.splitlines())) <= 100


@pytest.mark.parametrize(
    ("name", "line"), [("made/digits", "run"), ("of_best", "best"), ("of_teacher", "teacher")]
)
def test_safetensors_contain_the_parameters(name, line, made):
    params = {"run": made.generator, "best": made.best, "teacher": made.model.params}[line]
    options, weights = exported.read(made.folder / name)
    jax.tree.map(np.testing.assert_array_equal, weights, dict(params))
    assert options.network == made.model.config.network
    assert options.generator.sigma_init == 1.25
    digest = sha256_of_teacher(made) if line == "teacher" else checkpoint.params_sha256(params)
    assert f"sha256 {digest}" in made.output(line)
    assert re.search(r"safetensors: .*\d+ tensors equal; 3 images differ by \S+", made.output(line))


def sha256_of_teacher(made):
    return made.model.provenance["sha256"]


def test_files_and_output_of_an_export(made):
    written = {path.name for path in (made.folder / "made" / "digits").iterdir()}
    expected = {"model.safetensors", "config.json", "edm_state_dict.safetensors", "edm.json"}
    expected |= {"generator.stablehlo", "load_generator.py", "README.md"}
    assert written - {"given.npz", "made.npz", "__pycache__"} == expected
    for name in ("safetensors", "edm", "stablehlo"):
        assert f"{name}: " in made.output("run")
    assert "written to made/digits" in made.output("run")
    assert "EMA at step 7" in made.output("run")
    assert not list(made.folder.glob("**/*.tmp"))
    modes = {path.stat().st_mode for path in (made.folder / "pkl").iterdir()}
    assert len(modes) == 1  # all have the same permissions
    assert {path.name for path in (made.folder / "pkl").iterdir()} == {
        "edm_state_dict.safetensors",
        "edm.json",
        "README.md",
    }


def test_the_model_card_has_origin_settings_and_metrics(made):
    card = made.card("made/digits")
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "simjax"
    assert "license" not in yaml.safe_load(front)
    assert "# digits\n" in body
    assert "sigma_init = 1.25" in body
    assert f"- sha256: {checkpoint.params_sha256(made.generator)}" in body
    assert f"- the teacher's sha256: {made.model.provenance['sha256']}" in body
    assert re.search(r"generator, sim +1 +100 +0\.125 +50", body)
    settings = re.search(r"```json\n(.*?)\n```", body, re.DOTALL)[1]
    assert config.from_dict(json.loads(settings)) == made.model.config
    assert "None: nothing was measured" in made.card("pkl")
    assert "None: nothing was measured" in made.card(
        "of_best"
    )  # the report has the newest generator's
    assert "the best by pixels/recall (0.5)" in made.card("of_best")
    _, front, _ = made.card("latents").split("---\n", 2)
    assert yaml.safe_load(front)["pipeline_tag"] == "text-to-image"


def snippets(card):
    """Python examples of a model card, by heading."""
    return dict(re.findall(r"^## (\w+)\n.*?```python\n(.*?)```", card, re.MULTILINE | re.DOTALL))


def test_the_model_cards_examples_run(made, monkeypatch):
    examples = snippets(made.card("made/digits"))
    assert examples.keys() == {"safetensors", "edm", "stablehlo"}
    monkeypatch.chdir(made.folder / "made" / "digits")
    monkeypatch.syspath_prepend(".")
    own, program = {}, {}
    exec(examples["safetensors"], own)
    exec(examples["stablehlo"], program)
    monkeypatch.delitem(sys.modules, "load_generator")
    cond = np.eye(10, dtype=np.float32)[:4]
    expected = live(made.model, made.generator)(program["z"], cond)
    assert_close(program["x0"], expected)
    model = dataclasses.replace(made.model, params=made.generator)
    assert_close(own["images"], simjax.draw(model, 4, labels=[0]))


@pytest.mark.parametrize("line", list(MISTAKES))
def test_user_errors_print_one_message(made, line):
    message, output = made.done[line]
    assert MISTAKES[line] in message  # SystemExit with a text has exit status 1
    assert message.startswith("simjax: ")
    assert len(message.splitlines()) == 1
    assert "written to" not in output


def generator_of(network, precondition, **options):
    """Random weights and their samples of the comparison's inputs."""
    options = config.complete(config.Config(**options), network, precondition, 0.5)
    weights = random_weights(options, 0)
    denoise, params = build.denoiser(options, weights)
    sample = formats.sampler(options, denoise, params)
    return formats.Generator(options, weights, sample(*formats.inputs(options)))


CASES = {
    "ncsnpp": (NCSNPP, "ve", {}, "edm"),
    "adm": (ADM, "iddpm", {}, "edm"),
    "dit": (DIT, "ddpm_linear", {}, "diffusers"),
    "two calls": (
        DIT,
        "ddpm_linear",
        {"generator": config.Generator(levels=(2.5, 0.5), renoise="ddim")},
        None,
    ),
    "four calls": (DIT, "ddpm_linear", {"generator": config.Generator(steps=4)}, "diffusers"),
    "captions": (config.PixArt(**vars(PIXART) | {"caption_length": 9}), "edm", {}, None),
    "bfloat16": (TEACHER, "edm", {"compute_dtype": "bfloat16"}, "edm"),
    "seed 1": (TEACHER, "edm", {"seed": 1}, "edm"),
}


@pytest.mark.parametrize("name", CASES)
def test_every_network_round_trips(name, tmp_path):
    network, precondition, options, foreign = CASES[name]
    generator = generator_of(network, precondition, **options)
    for kind in ["safetensors", "stablehlo"] + ([foreign] if foreign else []):
        form = formats.FORMATS[kind]
        form.require(generator.config)
        form.write(generator, tmp_path)
        form.compare(generator, tmp_path)
    _, weights = exported.read(tmp_path)  # includes fixed frequencies and the null caption
    assert jax.tree.structure(weights) == jax.tree.structure(generator.weights)
    jax.tree.map(np.testing.assert_array_equal, weights, generator.weights)


def test_chains_that_diffusers_cannot_sample_are_rejected():
    for options, message in (
        ({"steps": 2, "renoise": "fixed"}, "its LCMScheduler supports fresh noise only"),
        ({"levels": (2.5, 2.4999)}, "diffusers needs different ones"),
    ):
        made = config.Config(generator=config.Generator(**options))
        options = config.complete(made, DIT, "ddpm_linear", 1.0)
        with pytest.raises(ConfigError, match=message):
            formats.FORMATS["diffusers"].require(options)


def test_a_four_step_program_with_other_levels_is_detected(tmp_path):
    four = generator_of(TEACHER, "edm", generator=config.Generator(steps=4))
    formats.FORMATS["safetensors"].write(four, tmp_path)
    other = config.complete(
        config.Config(generator=config.Generator(steps=4, shift=1.1)), TEACHER, "edm", 0.5
    )
    program = stablehlo.serialized(other, four.weights)
    (tmp_path / stablehlo.PROGRAM).write_bytes(program)
    with pytest.raises(ConfigError, match=r"generator.stablehlo, read back.* differ by"):
        formats.FORMATS["stablehlo"].compare(four, tmp_path)


def test_dit_of_the_original_repository_is_rejected_for_diffusers():
    network = config.DiT(**vars(DIT) | {"time_steps": 128})
    options = config.complete(config.Config(), network, "ddpm_linear", 1.0)
    with pytest.raises(ConfigError, match="127 steps, this network, from the original rep"):
        formats.FORMATS["diffusers"].require(options)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Undamaged exports of two networks in every format."""
    folder = tmp_path_factory.mktemp("written")
    generators = {
        "song": generator_of(TEACHER, "edm"),
        "dit": generator_of(DIT, "ddpm_linear"),
    }
    for name, kinds in {"song": ("safetensors", "edm", "stablehlo"), "dit": ("diffusers",)}.items():
        (folder / name).mkdir()
        for kind in kinds:
            formats.FORMATS[kind].write(generators[name], folder / name)
    return folder, generators


@pytest.mark.parametrize(
    ("kind", "name", "file"),
    [
        ("safetensors", "song", "model.safetensors"),
        ("edm", "song", "edm_state_dict.safetensors"),
        ("diffusers", "dit", "transformer/diffusion_pytorch_model.safetensors"),
    ],
)
def test_a_flipped_bit_is_detected(kind, name, file, written, tmp_path):
    folder, generators = written
    shutil.copytree(folder / name, tmp_path / name)
    path = tmp_path / name / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # sign or exponent bit of the last float32
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        formats.FORMATS[kind].compare(generators[name], tmp_path / name)
    assert file in str(error.value)
    assert path.exists()


def test_a_program_with_another_noise_level_is_detected(written, tmp_path):
    folder, generators = written
    shutil.copytree(folder / "song", tmp_path / "song")
    options = config.complete(config.Config(), TEACHER, "edm", 0.5)
    options.generator.sigma_init = 2.4
    program = stablehlo.serialized(options, generators["song"].weights)
    (tmp_path / "song" / "generator.stablehlo").write_bytes(program)
    with pytest.raises(ConfigError, match=r"generator.stablehlo, read back.* differ by"):
        formats.FORMATS["stablehlo"].compare(generators["song"], tmp_path / "song")


@pytest.mark.parametrize(
    ("kind", "name", "file", "change"),
    [
        ("edm", "song", "edm.json", ('"dropout": 0.13', '"dropout": 0.2')),
        ("diffusers", "dit", "transformer/config.json", ('"num_embeds', '"num_of_embeds')),
        ("safetensors", "song", "config.json", ('"sigma_init": 2.5', '"sigma_init": 2.4')),
        ("safetensors", "song", "config.json", ('"sigma_init"', '"sigma"')),
    ],
)
def test_changed_settings_are_detected(kind, name, file, change, written, tmp_path):
    folder, generators = written
    shutil.copytree(folder / name, tmp_path / name)
    text = (tmp_path / name / file).read_text()
    assert change[0] in text
    (tmp_path / name / file).write_text(text.replace(*change))
    with pytest.raises(ConfigError):
        formats.FORMATS[kind].compare(generators[name], tmp_path / name)
