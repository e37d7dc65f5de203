"""Checkpoints of DiT, SiT and PixArt-alpha are identified; other files are refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import save_file

import simjax
from simjax import config
from simjax.errors import ConfigError
from simjax.models import build, port
from simjax.porting import identify
from simjax.porting.maps import dit, pixart, rules, transformer
from simjax.runs import teacher
from simjax.runtime.monitor import Monitor
from tests.helpers import files, official
from tests.helpers.transformer_files import CONFIG, write_folder

SIZES = {"resolution": 8, "width": 48, "depth": 2, "heads": 3}
DIT = config.DiT(**SIZES, label_dim=5)
PIXART = config.PixArt(**SIZES, caption_channels=20, caption_length=7)


@pytest.fixture(autouse=True)
def small_heads(monkeypatch):
    monkeypatch.setitem(transformer.HEADS, 48, 3)


def quiet(text):
    """Discards messages."""


def weights_of(network):
    """Random weights of a network in simjax's layout."""
    options = config.complete(config.Config(), network, "ddpm_linear", 1.0)
    rng = np.random.default_rng(0)
    like = build.weights_like(options)
    return jax.tree.map(lambda a: rng.standard_normal(a.shape, np.float32), like)


def original(network, weights):
    """A state dict with the original names and the position table."""
    names = dit.ORIGINAL if isinstance(network, config.DiT) else pixart.ORIGINAL
    tensors = rules.export(names, weights, network.depth)
    spacing = 1 / getattr(network, "interpolation", 1)
    table = pixart.grid_embedding(network.resolution // network.patch, network.width, spacing)
    return tensors | {"pos_embed": table[None]}


def assert_same(ported, network, weights, precondition="ddpm_linear"):
    assert ported.description == (network, precondition, 1.0)
    ours, expected = official.flat(ported.weights), official.flat(weights)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value)


@pytest.mark.parametrize("wrap", [dict, lambda t: {"ema": t, "opt": {}, "args": "x"}])
def test_dits_checkpoint_is_ported(wrap, tmp_path):
    weights = weights_of(DIT)
    files.write_torch_zip(tmp_path / "dit.pt", wrap(original(DIT, weights)))
    ported = port.port(str(tmp_path / "dit.pt"), family="dit", say=quiet)
    assert_same(ported, DIT, weights)
    for part in (
        "DiT, not SiT",
        "3 attention heads",
        "class 5 is the null",
        "the noise schedule of DiT",
    ):
        assert part in ported.provenance["assumed"] and part in port.report(ported)
    assert ported.provenance.get("state_dict", "") == ("" if wrap is dict else "ema")


def test_a_checkpoint_that_may_be_dit_or_sit_needs_a_family(tmp_path):
    files.write_torch_zip(tmp_path / "dit.pt", original(DIT, weights_of(DIT)))
    message = refused(tmp_path / "dit.pt")
    for part in (
        "of DiT or of SiT",
        "--family=dit or --family=sit",
        "teacher.family",
        "simjax.load(",
    ):
        assert part in message
    with pytest.raises(ConfigError, match="family = 'unet' is not known; known: dit, sit"):
        port.port(str(tmp_path / "dit.pt"), family="unet", say=quiet)


@pytest.mark.parametrize("family", ["sit", "sit_gvp"])
def test_sits_checkpoint_is_ported_given_its_family(tmp_path, family):
    weights = weights_of(DIT)
    files.write_torch_zip(tmp_path / "sit.pt", {"ema": original(DIT, weights), "model": {}})
    ported = port.port(str(tmp_path / "sit.pt"), family=family, say=quiet)
    assert_same(ported, DIT, weights, precondition=family)
    assert "SiT, not DiT" in ported.provenance["assumed"]
    assert "noise" not in ported.provenance["assumed"]


def test_output_channels_are_inferred_from_the_file(tmp_path):
    half = dataclasses.replace(DIT, learn_sigma=False)
    weights = weights_of(half)
    assert weights["network"]["out"]["kernel"].shape[1] == 4 * half.patch**2
    files.write_torch_zip(tmp_path / "sit.pt", original(half, weights))
    assert_same(port.port(str(tmp_path / "sit.pt"), family="sit", say=quiet), half, weights, "sit")
    tensors = original(half, weights)
    tensors["final_layer.linear.weight"] = np.zeros((12, 48), np.float32)
    files.write_torch_zip(tmp_path / "odd.pt", tensors)
    with pytest.raises(ConfigError, match="has 3 output channels; expected 4, or 8 with learned"):
        port.port(str(tmp_path / "odd.pt"), family="sit", say=quiet)


def test_a_known_name_or_its_url_determines_the_family():
    url = port.zoo.ZOO["DiT-XL-2-256x256"].url
    names = ("DiT-XL-2-256x256", url, "SiT-XL-2-256x256", "PixArt-XL-2-512x512", "x.pt")
    assert list(map(port._published_family, names)) == ["dit", "dit", "sit", "", ""]


def test_a_family_that_a_file_contradicts_is_refused(tmp_path):
    files.write_torch_zip(tmp_path / "pixart.pth", original(PIXART, weights_of(PIXART)))
    with pytest.raises(
        ConfigError, match="family = 'dit', but the file .* PixArt; leave family out"
    ):
        port.port(str(tmp_path / "pixart.pth"), family="dit", say=quiet)


@pytest.mark.parametrize("path", ["teacher", "generator"])
def test_a_family_without_a_source_is_refused(path):
    options = config.Config()
    getattr(options, path).family = "dit"
    with pytest.raises(ConfigError, match=f"set --config.{path}.source=FILE"):
        config.require_teacher(options)


def test_runs_and_load_forward_the_family(tmp_path, monkeypatch):
    files.write_torch_zip(tmp_path / "dit.pt", original(DIT, weights_of(DIT)))
    source = str(tmp_path / "dit.pt")
    with pytest.raises(ConfigError, match="--family=dit"):
        simjax.load(source)
    assert simjax.load(source, family="dit").config.network == DIT
    options = config.Config(generator=config.Generator(source=source, family="dit"))
    start = teacher.starting_generator(
        options, simjax.load(source, family="dit"), epath.Path(tmp_path), Monitor(tmp_path)
    )
    assert build.count(start) > 0


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler is"),
        (
            {"prediction_type": "v_prediction"},
            "prediction_type = 'v_prediction' (known: 'epsilon')",
        ),
        ({"beta_schedule": "scaled_linear"}, "beta_schedule = 'scaled_linear' (known: 'linear')"),
        ({}, ""),
    ],
)
def test_a_pipelines_schedule_is_checked(scheduler, message, tmp_path):
    network = config.PixArt(**vars(PIXART) | {"caption_length": 0})
    tensors = rules.export(pixart.DIFFUSERS, weights_of(network), network.depth)
    inner = write_folder(tmp_path / "transformer", tensors)
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "scheduler").mkdir()
    flow = scheduler.get("_class_name", "").startswith("Flow")
    values = scheduler if flow else dict(identify.SCHEDULE) | scheduler
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(values))
    for source in (str(tmp_path), inner):
        if message:
            assert message in refused(tmp_path / "scheduler" / "scheduler_config.json", source)
        else:
            assert "assumed" not in port.port(source, say=quiet).provenance


@pytest.mark.parametrize("name", [None, "SiTTransformer2DModel", ["Transformer2DModel"]])
def test_a_folder_of_another_class_is_refused(name, tmp_path):
    network = config.PixArt(**vars(PIXART) | {"caption_length": 0})
    tensors = rules.export(pixart.DIFFUSERS, weights_of(network), network.depth)
    values = CONFIG | {"_class_name": name, "norm_type": "ada_norm_zero"}
    assert "known: DiTTransformer2DModel" in refused(write_folder(tmp_path, tensors, values))


@pytest.mark.parametrize("sized", [False, True])
def test_pixarts_checkpoint_is_ported(sized, tmp_path):
    network = PIXART
    if sized:
        network = config.PixArt(**vars(PIXART) | {"size_conditioning": True, "interpolation": 2.0})
    weights = weights_of(network)
    tensors = original(network, weights)
    files.write_torch_zip(tmp_path / "pixart.pth", {"state_dict": tensors, "epoch": 3})
    assert_same(port.port(str(tmp_path / "pixart.pth"), say=quiet), network, weights)


def test_sims_student_is_ported(tmp_path):
    weights = weights_of(PIXART)
    tensors = {f"module.model.{k}": v for k, v in original(PIXART, weights).items()}
    tensors |= {"module.u": np.zeros(1001, np.float32), "module.vae.x": np.zeros(3, np.float32)}
    files.write_torch_zip(tmp_path / "student.pt", {"ema": tensors})
    assert_same(port.port(str(tmp_path / "student.pt"), say=quiet), PIXART, weights)


@pytest.mark.parametrize("inside", ["", "transformer"])
def test_diffusers_folder_is_ported(inside, tmp_path):
    network = config.PixArt(**vars(PIXART) | {"caption_length": 0})
    weights = weights_of(network)
    write_folder(tmp_path / inside, rules.export(pixart.DIFFUSERS, weights, network.depth))
    if inside:
        (tmp_path / "model_index.json").write_text("{}")
    ported = port.port(str(tmp_path), say=quiet)
    assert_same(ported, network, weights)
    digest = ported.provenance["file_sha256"]
    assert port.port(str(tmp_path), sha256=digest, say=quiet).provenance["file_sha256"] == digest
    with pytest.raises(ConfigError, match=f"has sha256 {digest}, expected 0000"):
        port.port(str(tmp_path), sha256="0" * 64, say=quiet)


def test_guidance_without_a_null_caption_embedding_is_refused():
    options = config.Config(teacher=config.Teacher(guidance=4.5))
    network = config.PixArt(**vars(PIXART) | {"caption_length": 0})
    with pytest.raises(ConfigError, match="lack the learned null-caption embedding"):
        config.complete(options, network, "ddpm_linear", 1.0)


def refused(file, source=None) -> str:
    with pytest.raises(ConfigError) as error:
        port.port(str(source or file), say=quiet)
    assert str(file) in str(error.value)
    return str(error.value)


def test_another_networks_weights_are_refused(tmp_path):
    tensors = {"encoder.block.0.layer.0.SelfAttention.q.weight": np.zeros((4, 4), np.float32)}
    files.write_torch_zip(tmp_path / "t5.bin", tensors)
    message = refused(tmp_path / "t5.bin")
    assert "not a checkpoint of DiT or PixArt-alpha: the first of its 1 tensors are enc" in message
    folder = write_folder(tmp_path / "vae", tensors, {"_class_name": "AutoencoderKL"})
    assert "config.json describes AutoencoderKL" in refused(folder)
    network = config.PixArt(**vars(PIXART) | {"caption_length": 0})
    exported = rules.export(pixart.DIFFUSERS, weights_of(network), 2)
    save_file(exported, tmp_path / "alone.safetensors")
    assert "give the folder that holds both" in refused(tmp_path / "alone.safetensors")


def test_all_mismatches_are_reported_at_once(tmp_path):
    tensors = original(PIXART, weights_of(PIXART))
    del tensors["blocks.1.mlp.fc1.weight"], tensors["t_block.1.bias"]
    tensors |= {"blocks.0.extra": np.zeros(3, np.float32)}
    tensors["blocks.0.attn.proj.bias"] = np.zeros(9, np.float32)
    files.write_torch_zip(tmp_path / "pixart.pth", tensors)
    message = refused(tmp_path / "pixart.pth")
    assert "no rule for tensor blocks.0.extra (3,)" in message
    assert "9216 of 18432 elements fill network/blocks/mlp/fc1/kernel" in message
    assert "nothing fills network/modulation/bias" in message
    assert "blocks.0.attn.proj.bias arrives at network/blocks/attention/proj/bias[0]" in message


def test_missing_shards_are_named(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    name = "diffusion_pytorch_model.safetensors.index.json"
    (folder / name).write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    message = refused(folder)
    assert "model-1.safetensors" in message
    assert "model-2.safetensors" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 10**6}, "num_layers = 1000000; expected a whole number from 1 to"),
        ({"num_layers": None}, "num_layers is missing"),
        ({"activation_fn": "geglu"}, "not supported: activation_fn = 'geglu'"),
        ({"interpolation_scale": True}, "interpolation_scale = True"),
    ],
)
def test_invalid_settings_of_a_folders_config_are_refused(change, message, tmp_path):
    tensors = rules.export(pixart.DIFFUSERS, weights_of(PIXART), 2)
    assert message in refused(write_folder(tmp_path, tensors, CONFIG | change))


def test_large_sizes_in_a_config_allocate_no_memory(tmp_path):
    most = {"num_layers": 256, "num_attention_heads": 128, "attention_head_dim": 128}
    tensors = rules.export(pixart.DIFFUSERS, weights_of(PIXART), 2)
    message = refused(write_folder(tmp_path, tensors, CONFIG | most | {"caption_channels": 9999}))
    assert "mismatches" in message


def test_plan_of_a_known_name_needs_no_file():
    options = config.Config(teacher=config.Teacher(source="PixArt-XL-2-1024-MS"))
    planned = port.plan(options)
    assert planned.network.size_conditioning
    assert planned.teacher.precondition == "ddpm_linear"


def test_dropout_of_a_network_without_it_is_refused():
    with pytest.raises(ConfigError, match="dropout = 0.1, but DiT has no dropout"):
        config.complete(config.Config(dropout=0.1), DIT, "ddpm_linear", 1.0)
