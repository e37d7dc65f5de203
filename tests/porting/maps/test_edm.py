"""EDM checkpoints: constructor arguments, and the layouts that the name maps convert."""

import jax
import numpy as np
import pytest

from simjax import config
from simjax.config import Description
from simjax.errors import ConfigError
from simjax.models import build
from simjax.porting.maps import edm, rules
from tests.helpers import official
from tests.helpers.configs import NCSNPP, TEACHER

ARGUMENTS = {"img_resolution": 32, "img_channels": 3}


@pytest.mark.parametrize("head", [None, 2])
def test_interleaved_query_key_value_become_blocks(head):
    heads = 4 // (head or 4)
    names = np.array([f"{h}{j}{c}" for h in range(heads) for c in range(4 // heads) for j in "qkv"])
    blocks = [f"{h}{j}{c}" for j in "qkv" for h in range(heads) for c in range(4 // heads)]
    assert list(edm._qkv(names, head=head)) == blocks
    assert list(edm._interleaved(edm._qkv(names, head=head), head=head)) == list(names)


def test_cosines_and_sines_are_swapped():
    assert list(edm._swapped(np.array(["cos", "cos", "sin", "sin"]))) == [
        "sin",
        "sin",
        "cos",
        "cos",
    ]


def test_missing_arguments_have_the_constructors_defaults():
    assert edm.network("SongUNet", ARGUMENTS) == config.SongUNet(
        resolution=32,
        image_channels=3,
        augment_dim=0,
        channels=128,
        channel_mult=(1, 2, 2, 2),
        dropout=0.10,
    )
    assert edm.network("DhariwalUNet", ARGUMENTS | {"img_resolution": 64}) == config.AdmUNet(
        label_dim=0
    )


def test_a_wrapper_determines_preconditioning_and_default_network():
    found = edm.describe("EDMPrecond", ARGUMENTS | {"model_type": "SongUNet", "sigma_data": 0.3})
    assert isinstance(found.network, config.SongUNet)
    assert (found.precondition, found.sigma_data) == ("edm", 0.3)
    assert isinstance(edm.describe("iDDPMPrecond", ARGUMENTS).network, config.AdmUNet)
    assert edm.describe("VPPrecond", ARGUMENTS | {"beta_d": 19.9, "M": 1000})[1:] == ("vp", 0.5)


@pytest.mark.parametrize(
    ("wrapper", "arguments", "message"),
    [
        ("Generator", {}, "class 'Generator' is not a network of the EDM release"),
        ("EDMPrecond", {"model_type": "UNet"}, "network class 'UNet' is not supported"),
        ("VEPrecond", {"encoder_type": "skip"}, "encoder_type = 'skip' is not supported"),
        ("VPPrecond", {"beta_d": 10.0}, "VPPrecond with beta_d = 10.0 is not supported"),
        ("VPPrecond", {"attn": 1}, "SongUNet has no argument attn"),
        ("EDMPrecond", {"sigma_data": -1.0}, "sigma_data = -1.0"),
        ("EDMPrecond", {"sigma_data": "x"}, "sigma_data = 'x'"),
        ("EDMPrecond", {"num_blocks": 10**6}, "num_blocks = 1000000 cannot be built"),
        ("EDMPrecond", {"model_channels": 10**9}, "model_channels = 1000000000 cannot be built"),
        ("EDMPrecond", {"channel_mult": [1] * 100}, "channel_mult = [1, 1"),
        ("EDMPrecond", {"channel_mult": {"a": 1}}, "channel_mult = {'a': 1} cannot be built"),
        ("EDMPrecond", {"img_resolution": "big"}, "img_resolution = 'big' cannot be built"),
        ("EDMPrecond", {"model_channels": float("nan")}, "model_channels = nan cannot be built"),
    ],
)
def test_unsupported_arguments_are_refused(wrapper, arguments, message):
    with pytest.raises(ConfigError) as error:
        edm.describe(wrapper, ARGUMENTS | arguments)
    assert message in str(error.value)


def test_missing_resolution_is_refused():
    with pytest.raises(ConfigError, match="img_resolution is missing"):
        edm.describe("VEPrecond", {"img_channels": 3})


def test_official_state_dicts_survive_import_and_export(network_case):
    # Recorded from the official classes: all names, resampling filters and tables of levels.
    recording = official.read(network_case.path)
    values, tensors = recording.json("config"), recording.tensors("param/")
    found = edm.describe(values.pop("precond"), {"sigma_data": 0.5} | values)
    completed = config.complete(config.Config(), *found)
    weights = rules.apply(edm.rules(found.network), tensors, build.weights_like(completed))
    again = edm.state_dict(found, weights)
    assert again.keys() == tensors.keys()
    np.testing.assert_allclose(again.pop("u", 0), tensors.get("u", 0), rtol=2e-5)  # our recursion
    for name, value in again.items():
        np.testing.assert_array_equal(value, tensors[name], err_msg=name)
        assert value.dtype == np.float32
        assert value.flags.c_contiguous or name.endswith("resample_filter")


ADM = config.AdmUNet(resolution=8, label_dim=3, augment_dim=9, channels=64, channel_mult=(1, 2))
DESCRIBED = [
    Description(TEACHER, "edm", 0.3),
    Description(NCSNPP, "ve", 0.5),
    Description(ADM, "iddpm", 0.5),
    Description(TEACHER, "vp", 0.5),
]


@pytest.mark.parametrize("description", DESCRIBED)
def test_describe_inverts_constructor(description):
    name, arguments = edm.constructor(description)
    assert edm.describe(name, arguments) == description


@pytest.mark.parametrize("description", DESCRIBED)
def test_our_weights_survive_export_and_import(description):
    draw = np.random.default_rng(0)
    like = build.weights_like(config.complete(config.Config(), *description))
    weights = jax.tree.map(lambda leaf: draw.standard_normal(leaf.shape, np.float32), like)
    tensors = edm.state_dict(description, weights)
    again = rules.apply(edm.rules(description.network), tensors, like)
    jax.tree.map(np.testing.assert_array_equal, again, weights)


@pytest.mark.parametrize(
    ("network", "family"), [(TEACHER, "flow"), (config.DiT(), "edm"), (config.PixArt(), "edm")]
)
def test_denoisers_outside_the_release_are_refused(network, family):
    with pytest.raises(ConfigError, match="is not a denoiser of the EDM release, which has"):
        edm.constructor(Description(network, family, 0.5))
