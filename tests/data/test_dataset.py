"""`Dataset` and its batches; the digits as a data set."""

import hashlib

import numpy as np
import pytest

from simjax import data
from simjax.data import dataset, digits
from simjax.errors import ConfigError


def small(size: int = 11, labels=None) -> dataset.Dataset:
    """Images whose pixels equal their index, with three classes."""
    images = np.broadcast_to(np.arange(size, dtype=np.uint8)[:, None, None, None], (size, 2, 3, 1))
    labels = np.arange(size, dtype=np.int32) % 3 if labels is None else labels
    return dataset.in_memory("small", images, labels, 3)


def indices(images: np.ndarray) -> list[int]:
    return list(images[:, 0, 0, 0])


def test_the_digits_data_set_has_the_digits_images_and_labels():
    found = data.open("digits")
    images, labels = digits.load()
    np.testing.assert_array_equal(found.load(), images)
    np.testing.assert_array_equal(found.labels, labels)
    assert (found.name, found.size, found.shape) == ("digits", 1797, (8, 8, 1))
    assert found.label_dim == 10
    assert found.read(np.array([5, 3])).shape == (2, 8, 8, 1)
    whole = images.tobytes() + labels.tobytes()
    assert found.fingerprint() == hashlib.sha256(whole).hexdigest()


def test_uint8_is_scaled_to_the_unit_interval_and_float32_is_unchanged():
    bytes_ = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1)
    found = dataset.to_unit(bytes_)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.ravel(), [-1, -0.6, 1], rtol=1e-6)
    levels = digits.load()[0]
    assert dataset.to_unit(levels) is levels
    assert set(np.unique(levels)) == {level / 8 - 1 for level in range(17)}
    with pytest.raises(TypeError, match="images of int64; expected uint8"):
        dataset.to_unit(bytes_.astype(np.int64))


def test_the_prior_includes_classes_without_images():
    labels = np.array([0, 0, 1, 0], np.int32)
    np.testing.assert_array_equal(small(4, labels).prior(), [0.75, 0.25, 0])
    unlabelled = dataset.Dataset("none", 4, (2, 3, 1), None, 0, lambda index: index)
    assert unlabelled.prior().shape == (0,)


@pytest.mark.parametrize("shuffle_seed", [None, 7])
@pytest.mark.parametrize("process_count", [1, 2, 3, 5])
def test_any_number_of_processes_shares_the_same_batches(process_count, shuffle_seed):
    given = small(11)
    alone = list(dataset.batches(given, 4, shuffle_seed=shuffle_seed))
    shares = [
        list(
            dataset.batches(
                given,
                4,
                process_index=index,
                process_count=process_count,
                shuffle_seed=shuffle_seed,
            )
        )
        for index in range(process_count)
    ]
    assert [len(images) for images, _ in alone] == [4, 4, 3]
    for number, (images, labels) in enumerate(alone):
        together = [share[number] for share in shares]  # as many batches in every process
        seen = [index for part, _ in together for index in indices(part)]
        assert sorted(seen) == sorted(indices(images))
        assert len(set(seen)) == len(seen)
        for part, part_labels in [*together, (images, labels)]:
            assert part.shape[1:] == (2, 3, 1)
            assert list(part_labels) == [index % 3 for index in indices(part)]
    everything = [index for images, _ in alone for index in indices(images)]
    assert sorted(everything) == list(range(11))
    assert (everything == list(range(11))) == (shuffle_seed is None)


def test_shuffles_repeat_and_differ_by_seed():
    def order(seed):
        return [i for images, _ in data.batches(small(), 4, shuffle_seed=seed) for i in images.flat]

    assert order(1) == order(1) != order(2)


def test_batches_of_unlabelled_images_have_no_labels():
    unlabelled = dataset.Dataset("none", 3, (1, 1, 1), None, 0, lambda index: index)
    assert [labels for _, labels in dataset.batches(unlabelled, 2)] == [None, None]


@pytest.mark.parametrize("given", [(0, 0, 1), (4, 1, 1), (4, -1, 2)])
def test_invalid_batch_or_process_index_is_refused(given):
    batch, process_index, process_count = given
    with pytest.raises(ConfigError, match=f"batch = {batch} for process {process_index} of"):
        next(data.batches(small(), batch, process_index=process_index, process_count=process_count))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(10, np.int32), "small has 10 labels for 11 images"),
        (np.full(11, 3, np.int32), "small has labels from 3 to 3; expected 0 to 2"),
        (np.full(11, -1, np.int32), "small has labels from -1 to -1; expected 0 to 2"),
    ],
)
def test_labels_must_fit(labels, message):
    with pytest.raises(ConfigError, match=message):
        small(11, labels)


def test_a_data_set_without_images_is_refused():
    with pytest.raises(ConfigError, match="small has no images"):
        small(0)


@pytest.mark.parametrize(
    ("source", "split", "message"),
    [
        ("cifar10", "train", "'cifar10' is not known; expected digits, idx:DIR .* tfds:NAME"),
        ("digits:8", "train", "digits takes nothing after its name"),
        ("digits", "test", "digits has no split 'test'"),
    ],
)
def test_unknown_sources_and_splits_are_refused(source, split, message):
    with pytest.raises(ConfigError, match=message):
        data.open(source, split=split)
