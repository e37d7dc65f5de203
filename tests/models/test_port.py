"""Porting whole checkpoints, and the errors for damaged or mismatched ones."""

import jax
import numpy as np
import pytest

from simjax import config
from simjax.errors import ConfigError
from simjax.models import build, port
from tests.helpers import checkpoints, file_server, files, official

SMALL = {
    "resolution": 8,
    "channels": 16,
    "channel_mult": (1, 2),
    "blocks": 1,
    "attention_resolutions": (4,),
}
NCSNPP = {
    "embedding": "fourier",
    "noise_channels": 2,
    "encoder": "residual",
    "filter_taps": (1, 3, 3, 1),
}
NETWORKS = {
    "ddpmpp": config.SongUNet(label_dim=10, **SMALL),
    "ncsnpp": config.SongUNet(**SMALL, **NCSNPP),
    "adm": config.AdmUNet(label_dim=7, **SMALL | {"channels": 32}),
}


def quiet(text: str) -> None:
    """Discards progress messages."""


@pytest.mark.parametrize("name", NETWORKS)
def test_network_is_read_from_the_checkpoint_and_every_value_is_ported(name, tmp_path):
    made = checkpoints.write(tmp_path / "net.pkl", NETWORKS[name])
    ported = port.port(str(tmp_path / "net.pkl"), say=quiet)
    assert ported.description == (NETWORKS[name], "edm", 0.5)
    weights = official.flat(ported.weights)
    trained = {k: v for k, v in made.items() if not k.endswith(("resample_filter", "freqs"))}
    assert ported.provenance["parameters"] == sum(v.size for v in trained.values())
    first = weights["network/enc/8x8_conv/kernel"]
    np.testing.assert_array_equal(
        first, made["model.enc.8x8_conv.weight"].transpose(2, 3, 1, 0), strict=True
    )
    numbers = np.sort(np.concatenate([np.ravel(w) for w in weights.values()]))
    stored = [v.ravel() for k, v in made.items() if not k.endswith("resample_filter")]
    np.testing.assert_array_equal(numbers, np.sort(np.concatenate(stored)))


@pytest.mark.parametrize("name", ["ddpmpp", "adm"])
def test_sida_generator_ports_like_edm(name, tmp_path):
    """SiDA's network classes have other names but the same parameters."""
    for folder, suffix in (("edm", ""), ("sida", "_EncoderDecoder")):
        (tmp_path / folder).mkdir()
        checkpoints.write(tmp_path / folder / "net.pkl", NETWORKS[name], suffix=suffix)
    edm, sida = (port.port(str(tmp_path / f / "net.pkl"), say=quiet) for f in ("edm", "sida"))
    assert sida.description == edm.description
    jax.tree.map(np.testing.assert_array_equal, sida.weights, edm.weights)


def test_official_format_gives_the_recorded_networks(network_case, tmp_path):
    # Recorded weights in the release's file format give the parameter tree of the parity tests.
    recording = official.read(network_case.path)
    arguments, tensors = recording.json("config"), recording.tensors("param/")
    expected = official.network(arguments, tensors)
    wrapper = arguments.pop("precond")
    kind = ("resample_filter", "freqs", "u")
    buffers = [name for name in tensors if name.rpartition(".")[2] in kind]
    path = tmp_path / "net.pkl"
    files.write_network_pickle(path, wrapper, arguments, tensors, buffers=buffers)
    ported = port.port(str(path), say=quiet)
    completed = config.complete(config.Config(), *ported.description)
    _, params = build.denoiser(completed, ported.weights)
    ours, theirs = official.flat(params), official.flat(expected.params)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)


def test_fixed_frequencies_are_ported_as_constants(tmp_path):
    made = checkpoints.write(tmp_path / "net.pkl", NETWORKS["ncsnpp"])
    ported = port.port(str(tmp_path / "net.pkl"), say=quiet)
    completed = config.complete(config.Config(), *ported.description)
    denoise, params = build.denoiser(completed, ported.weights)
    assert not [name for name in official.flat(params) if "frequencies" in name]
    found = official.flat(ported.weights)["network/map_noise/frequencies"]
    np.testing.assert_array_equal(found, made["model.map_noise.freqs"])
    z, sigma = np.ones((1, 8, 8, 3), np.float32), np.full(1, 2, np.float32)
    changed = jax.tree.map(np.array, ported.weights)
    changed["network"]["map_noise"]["frequencies"] *= 2
    other, _ = build.denoiser(completed, changed)
    labels = np.zeros((1, 0), np.float32)
    assert np.any(denoise(params, z, sigma, labels) != other(params, z, sigma, labels))


def test_half_precision_files_become_float32(tmp_path):
    made = {k: v.astype(np.float16) for k, v in checkpoints.tensors(NETWORKS["ddpmpp"]).items()}
    arguments = checkpoints.arguments(NETWORKS["ddpmpp"]) | {"use_fp16": True}
    files.write_network_pickle(tmp_path / "net.pkl", "EDMPrecond", arguments, made)
    weights = official.flat(port.port(str(tmp_path / "net.pkl"), say=quiet).weights)
    assert {w.dtype for w in weights.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(
        weights["network/out_conv/bias"], made["model.dec.8x8_aux_conv.bias"].astype(np.float32)
    )


def without(name):
    return lambda tensors, arguments: tensors.pop(name)


def reshaped(name):
    return lambda tensors, arguments: tensors.update({name: tensors[name][:1]})


def extra(tensors, arguments):
    tensors["model.enc.8x8_extra.weight"] = np.zeros(3, np.float32)


def not_a_number(tensors, arguments):
    tensors["model.enc.8x8_conv.bias"] = np.full(16, np.nan, np.float32)


def other_size(tensors, arguments):
    arguments["model_channels"] = 24


def unbuildable(tensors, arguments):
    arguments["img_resolution"] = 9


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("model.enc.8x8_conv.bias"), "nothing fills network/enc/8x8_conv/bias (16,)"),
        (reshaped("model.enc.8x8_conv.bias"), "as (1,), expected (16,)"),
        (extra, "model.enc.8x8_extra.weight"),
        (not_a_number, "1 of "),
        (other_size, "expected (24,)"),
        (unbuildable, "9 pixels cannot be halved at 2 levels"),
    ],
)
def test_mismatched_checkpoint_error_lists_the_tensors(damage, message, tmp_path):
    tensors = checkpoints.tensors(NETWORKS["ddpmpp"])
    arguments = checkpoints.arguments(NETWORKS["ddpmpp"])
    damage(tensors, arguments)
    path = tmp_path / "net.pkl"
    files.write_network_pickle(path, "EDMPrecond", arguments, tensors)
    with pytest.raises(ConfigError) as error:
        port.port(str(path), say=quiet)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


def test_positional_constructor_arguments_are_refused(tmp_path):
    path = tmp_path / "net.pkl"
    network = NETWORKS["ddpmpp"]
    arguments, tensors = checkpoints.arguments(network), checkpoints.tensors(network)
    files.write_network_pickle(path, "EDMPrecond", arguments, tensors, positional=(8, 3))
    with pytest.raises(ConfigError, match="arguments without names"):
        port.port(str(path), say=quiet)


def test_url_is_downloaded_once_and_its_sha256_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMJAX_CACHE", str(tmp_path / "cache"))
    checkpoints.write(tmp_path / "net.pkl", NETWORKS["adm"])
    with file_server.serve(file_server.Site((tmp_path / "net.pkl").read_bytes())) as site:
        first = port.port(f"{site.url}", say=quiet)
        again = port.port(f"{site.url}", say=quiet)
        assert len(site.requests) == 1
    sha256 = first.provenance["file_sha256"]
    assert sha256 == again.provenance["file_sha256"]
    text = port.report(first)
    for part in (sha256, "AdmUNet", "7 classes", f"{first.provenance['parameters']:,}", "edm"):
        assert part in text
    with pytest.raises(ConfigError, match="expected " + "0" * 64):
        port.port(f"{site.url}", sha256="0" * 64, say=quiet)
