"""The aesthetic head against its composed affine map; refusal of other files."""

import numpy as np
import pytest

from simjax.errors import ConfigError
from simjax.evaluation.clip import aesthetic
from tests.helpers import files
from tests.helpers.clip_files import aesthetic_head


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    path = tmp_path_factory.mktemp("head") / "sac+logos+ava1-l14-linearMSE.pth"
    files.write_torch_zip(path, aesthetic_head())
    return aesthetic.load(path)


def affine_map():
    """Slope and intercept of the five layers together, float64."""
    tensors = {name: tensor.astype(np.float64) for name, tensor in aesthetic_head().items()}
    slope, intercept = np.eye(768), np.zeros(768)
    for name in ("0", "2", "4", "6", "7"):
        weight, bias = tensors[f"layers.{name}.weight"], tensors[f"layers.{name}.bias"]
        slope, intercept = weight @ slope, weight @ intercept + bias
    return slope[0], intercept[0]


def test_a_score_is_an_affine_map_of_the_normalised_embedding(head):
    embeddings = 9 * np.random.default_rng(1).standard_normal((5, 768)).astype(np.float32)
    slope, intercept = affine_map()
    lengths = np.sqrt((embeddings.astype(np.float64) ** 2).sum(1))
    found = aesthetic.aesthetic_scores(head, embeddings)
    assert found.shape == (5,)
    assert found.min() < 0 < found.max()
    np.testing.assert_allclose(
        found, embeddings @ slope / lengths + intercept, rtol=1e-4, atol=1e-4
    )


def test_scores_do_not_depend_on_the_embeddings_norm(head):
    embeddings = np.random.default_rng(1).standard_normal((5, 768)).astype(np.float32)
    np.testing.assert_allclose(
        aesthetic.aesthetic_scores(head, 100 * embeddings),
        aesthetic.aesthetic_scores(head, embeddings),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_zero_embedding_scores_the_bias(head):
    found = aesthetic.aesthetic_scores(head, np.zeros((1, 768), np.float32))
    np.testing.assert_allclose(found, [affine_map()[1]], rtol=1e-4, atol=1e-4)


def test_embeddings_of_another_network_are_refused(head):
    with pytest.raises(ConfigError, match="embeddings have 512 channels.* 768"):
        aesthetic.aesthetic_scores(head, np.ones((1, 512), np.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers.0.weight": np.ones((1024, 512), np.float32)}, r"expected \(768, 1024\)"),
        ({"layers.9.weight": np.ones((1, 1), np.float32)}, "no rule for tensor layers.9.weight"),
        ({"layers.7.bias": np.array([np.nan], np.float32)}, r"NaN or infinity \(layers.7.bias\)"),
    ],
)
def test_files_of_other_heads_are_refused(tmp_path, changes, message):
    path = tmp_path / "other.pth"
    files.write_torch_zip(path, aesthetic_head() | changes)
    with pytest.raises(ConfigError, match=message) as error:
        aesthetic.load(path)
    assert str(error.value).startswith(str(path))
