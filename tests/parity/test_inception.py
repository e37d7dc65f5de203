"""FID's Inception-v3 against pytorch-fid: from a weight file to features, logits, probabilities."""

import functools
import hashlib
import math
import pathlib
import tempfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from simjax.errors import ConfigError
from simjax.evaluation.inception import NAME, Weights, load
from simjax.networks import inception
from simjax.porting import zoo
from simjax.porting.maps import inception as port
from simjax.porting.maps import rules
from simjax.typing import Params
from tests.helpers import files, official

TOLERANCE = 1e-4  # tests/golden/README.md
WRITERS = {"zip": files.write_torch_zip, "stream": files.write_torch_stream}


class Evaluation(NamedTuple):
    """Our outputs for the images of a recording, with the weights of its recipe."""

    recording: official.Recording
    weights: dict[str, np.ndarray]  # under the reference's names
    ported: dict[str, Weights]  # by container
    outputs: inception.Outputs
    moments: list[tuple]  # mean and standard deviation over positions, of each stage
    corner: jax.Array  # of the resized images


def quiet(text: str) -> None:
    """Discards log lines."""


def shapes(recording: official.Recording) -> dict[str, tuple[int, ...]]:
    """PyTorch's shape of every tensor, in the recipe's order."""
    like = rules._flatten(inception.weights_like())
    ours = {path: leaf.shape for path, leaf in like}
    found = {}
    for name in map(str, recording["check/keys"]):
        shape = ours[official.path_of(name, port.RULES)]
        found[name] = {4: shape[:-3:-1] + shape[:2], 2: shape[::-1], 1: shape}[len(shape)]
    return found


def recipe(recording: official.Recording) -> dict[str, np.ndarray]:
    """Weights drawn with config.weight_seed, in the order of the names."""
    rng = np.random.default_rng(recording.json("config")["weight_seed"])
    ends = {
        ".conv.weight": lambda z: z * math.sqrt(2 / math.prod(z.shape[1:])),
        ".bn.weight": lambda z: 1 + 0.1 * z,
        ".bn.running_var": lambda z: np.exp(0.2 * z),
        ".bn.running_mean": lambda z: 0.1 * z,
        "bias": lambda z: 0.1 * z,
        "fc.weight": lambda z: z / math.sqrt(z.shape[1]),
    }
    weights = {}
    for name, shape in shapes(recording).items():
        make = next(make for end, make in ends.items() if name.endswith(end))
        weights[name] = make(rng.standard_normal(shape)).astype(np.float32)
    return weights


def ported(weights: dict[str, np.ndarray], write) -> Weights:
    """Ports the weights through a file that also contains unused tensors."""
    ignored = {
        "Mixed_5b.branch1x1.bn.num_batches_tracked": np.array(7),
        "AuxLogits.conv0.conv.weight": np.ones((128, 768, 1, 1), np.float32),
        "AuxLogits.fc.bias": np.ones(1000, np.float32),
    }
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "weights.pth")
        write(path, weights | ignored)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found = load(str(path), sha256=digest[:8])
        assert (found.sha256, found.source) == (digest, str(path))
    return found


@functools.cache
def evaluate(case) -> Evaluation:
    recording = official.read(case.path)
    weights = recipe(recording)
    loaded = {name: ported(weights, write) for name, write in WRITERS.items()}
    graphdef, _ = nnx.split(nnx.eval_shape(inception.InceptionV3))
    corner = recording["out/resized_corner"].shape[2:]

    @jax.jit
    def run(params: Params, images: jax.Array):
        network = nnx.merge(graphdef, params)
        stages = network.stages(images)
        small = inception.resized(images / 255, inception.SIZE)[:, : corner[0], : corner[1]]
        return network(images), [(x.mean((1, 2)), x.std((1, 2))) for x in stages], small

    images = recording.images("in/images_uint8")
    return Evaluation(recording, weights, loaded, *run(loaded["zip"].params, images))


def test_weights_are_those_of_the_recording(inception_case):
    ours = evaluate(inception_case)
    assert sorted(ours.weights) == list(ours.weights)
    sums = [np.abs(w.astype(np.float64)).sum() for w in ours.weights.values()]
    np.testing.assert_allclose(sums, ours.recording["check/sum_abs"], rtol=1e-12)
    firsts = [w.flat[0] for w in ours.weights.values()]
    np.testing.assert_array_equal(firsts, ours.recording["check/first"])


def test_both_containers_give_the_same_weights(inception_case):
    ours = evaluate(inception_case)
    zipped, streamed = (official.flat(weights.params) for weights in ours.ported.values())
    assert zipped.keys() == streamed.keys()
    for path, weight in zipped.items():
        np.testing.assert_array_equal(weight, streamed[path], strict=True)


def test_resized_images(inception_case):
    ours = evaluate(inception_case)
    assert official.rel(ours.corner, ours.recording.images("out/resized_corner")) <= TOLERANCE


def test_activations_of_each_stage(inception_case):
    ours = evaluate(inception_case)
    compared = 0
    for number, moments in enumerate(ours.moments):
        for kind, ours_of_kind in zip(("mean", "std"), moments, strict=True):
            expected = ours.recording.get(f"out/block{number}_{kind}")
            if expected is not None:
                assert official.rel(ours_of_kind, expected) <= TOLERANCE, (number, kind)
                compared += 1
    assert compared >= 6  # three stages; the last one's mean is the features


def test_features_logits_and_probabilities(inception_case):
    ours = evaluate(inception_case)
    outputs, recording = ours.outputs, ours.recording
    assert official.rel(outputs.features, recording["out/pool"]) <= TOLERANCE
    assert official.rel(outputs.logits, recording["out/logits"]) <= TOLERANCE
    without = outputs.logits_without_bias
    assert official.rel(without, recording["out/logits_no_bias"]) <= TOLERANCE
    assert official.rel(jax.nn.softmax(without), recording["out/probs_no_bias"]) <= TOLERANCE


def test_bfloat16_is_near_float32(inception_case):
    ours = evaluate(inception_case)
    images = ours.recording.images("in/images_uint8")
    extract = jax.jit(inception.extractor(jnp.bfloat16))
    outputs = extract(ours.ported["zip"].params, images)
    assert all(output.dtype == jnp.float32 for output in outputs)
    error = official.rel(outputs.features, ours.recording["out/pool"])
    assert TOLERANCE < error < 2e-2  # 8 bits a number: about 4e-3


# Invalid files. All tensors share one storage of ones, to keep the files small.


@pytest.fixture
def ones(inception_case) -> dict[str, np.ndarray]:
    needed = shapes(official.read(inception_case.path))
    storage = np.ones(max(map(math.prod, needed.values())), np.float32)
    return {name: storage[: math.prod(shape)].reshape(shape) for name, shape in needed.items()}


def test_files_other_than_the_published_one_are_refused(tmp_path, monkeypatch, ones):
    monkeypatch.setenv("SIMJAX_CACHE", str(tmp_path))
    by_hand = tmp_path / zoo.INCEPTION.rpartition("/")[2]
    files.write_torch_zip(by_hand, ones)
    digest = hashlib.sha256(by_hand.read_bytes()).hexdigest()
    for source in (NAME, str(by_hand)):
        with pytest.raises(ConfigError) as error:
            load(source, say=quiet)
        assert str(error.value).startswith(f"{by_hand} has sha256 {digest}, expected 6726825d")
        assert f"Fetch {zoo.INCEPTION}" in str(error.value)
    accepted = load(sha256="", say=quiet)
    assert (accepted.sha256, accepted.source) == (digest, NAME)
    with pytest.raises(ConfigError, match="has sha256"):
        load(str(by_hand), sha256=digest[1:], say=quiet)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.bias": None}, "1 mismatches .*\n  nothing fills fc/bias"),
        ({"Mixed_5b.branch1x1.bn.running_var": None}, "nothing fills convs/Mixed_5b.branch1x1/var"),
        ({"fc.weight": np.ones((1000, 2048), np.float32)}, r"arrives at fc/kernel as \(2048, 1000"),
        ({"fc.bias": np.full(1008, np.nan, np.float32)}, r"tensors hold NaN or infinity \(fc.bias"),
        (
            {"Mixed_7d.branch1x1.bn.bias": np.ones(320, np.float32)},
            "Mixed_7d.branch1x1/bias, which",
        ),
        (
            {"classifier.weight": np.ones(1, np.float32)},
            "1 mismatches .*\n  no rule for tensor class",
        ),
        ({"epoch": 3}, "contains a int, expected a dict of named tensors"),
    ],
)
def test_files_with_wrong_tensors_are_refused(tmp_path, ones, change, message):
    path = tmp_path / "weights.pth"
    changed = {name: tensor for name, tensor in (ones | change).items() if tensor is not None}
    files.write_torch_zip(path, changed)
    with pytest.raises(ConfigError, match=message) as error:
        load(str(path), sha256="", say=quiet)
    assert str(error.value).startswith(f"{path}: ")


def test_files_without_a_state_dict_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    files.write_torch_zip(path, [np.ones(3, np.float32)])
    with pytest.raises(ConfigError, match="contains a list, expected a dict of named tensors"):
        load(str(path), sha256="", say=quiet)
