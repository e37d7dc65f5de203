"""Feature spaces in which sets of images are compared: Inception, pixels, classifier.

Only a Frechet distance of Inception-v3 features is an FID (arXiv:1706.08500). Without its weights:
raw pixels, or the last hidden layer of a small classifier trained on the real images. `protocol`
of each space records everything that its numbers depend on. Called by evaluation/reference.py and
evaluation/evaluator.py.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sklearn
from jaxtyping import Float, Int, UInt8
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from simjax.data.dataset import Dataset, to_unit
from simjax.errors import ConfigError
from simjax.evaluation import images as image_files
from simjax.evaluation import inception as inception_weights
from simjax.networks import inception as inception_network
from simjax.porting import zoo
from simjax.runtime import sharding, storage
from simjax.typing import Array, Params, typed

Say = Callable[[str], None]

BYTES = "uint8; floats by clamp(127.5 x + 128, 0, 255), truncated"
INCEPTION_DIMENSION = 2048  # of the last pooling layer

# The classifier; all our choice. Accuracy: 98 % on the digits, 88 % on Fashion-MNIST. 20 s on one
# core.
HIDDEN = (256, 128)
ITERATIONS = 20  # epochs, without early stopping
FIT_BATCH = 200
MOST_FITTED = 30_000  # images
CLASSIFIER_BATCH = 1024


class Extracted(NamedTuple):
    """Features of n images, and logits if the space has classes.

    Inception logits are without the bias of the last layer, as for the official Inception Score.
    """

    features: Float[np.ndarray, "n d"]
    logits: Float[np.ndarray, "n k"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Extractor:
    """A feature space.

    Args:
      name: key in EXTRACTORS.
      frechet: display name of the Frechet distance in this space.
      protocol: everything the features depend on, for JSON; numbers are comparable if it is equal.
        "dimension" is d; absent for pixels, where it depends on the images.
      extract: maps any number of uint8 images (n, h, w, c) to features; same on every process.
    """

    name: str
    frechet: str
    protocol: dict[str, Any]
    extract: Callable[[UInt8[np.ndarray, "n h w c"]], Extracted]


def pixels() -> Extractor:
    """Raw pixels, scaled to [-1, 1] by v / 127.5 - 1.

    >>> images = np.array([[[[0], [255]]]], np.uint8)
    >>> pixels().extract(images).features.tolist()
    [[-1.0, 1.0]]
    """

    @typed
    def extract(images: UInt8[np.ndarray, "n h w c"]) -> Extracted:
        return Extracted(to_unit(images).reshape(len(images), math.prod(images.shape[1:])), None)

    protocol = {"features": "pixels, v / 127.5 - 1", "images": BYTES}
    return Extractor("pixels", "Frechet distance, pixels", protocol, extract)


def inception(
    source: str = inception_weights.NAME,
    sha256: str = zoo.INCEPTION_SHA256,
    batch: int = 64,
    dtype: jnp.dtype = jnp.float32,
    say: Say = print,
) -> Extractor:
    """Inception-v3 features, the feature space of FID.

    Args:
      source, sha256: weights and their checksum, see evaluation.inception.load.
      batch: batch size, rounded up to a multiple of the number of devices; our choice.
      dtype: compute dtype; other than float32 is an approximation, recorded in the protocol.

    Raises:
      ConfigError: the weights cannot be loaded.
    """
    weights = inception_weights.load(source, sha256=sha256, say=say)
    dtype = jnp.dtype(dtype)
    run = inception_network.extractor(dtype)

    def forward(params: Params, images: Array) -> Extracted:
        outputs = run(params, images)
        return Extracted(outputs.features, outputs.logits_without_bias)

    about = inception_network.Features(weights_sha256=weights.sha256, dtype=dtype.name)
    protocol = {"features": "inception", "dimension": INCEPTION_DIMENSION, "images": BYTES}
    protocol |= dataclasses.asdict(about)
    return Extractor("inception", "FID", protocol, batched(forward, weights.params, batch))


def classifier(dataset: Dataset, seed: int = 0, say: Say = print) -> Extractor:
    """Last hidden layer of an MLP classifier trained on the real images.

    Trained on a random half of at most 2 MOST_FITTED images and tested on the other half. Cached,
    so each machine trains it once.

    Raises:
      ConfigError: no labels, fewer than two classes, or a class without training images.
    """
    if dataset.labels is None:
        raise ConfigError(
            f"{dataset.name} has no labels, so no classifier can be trained on it; choose the "
            "features 'pixels' or 'inception'."
        )
    order = np.random.default_rng(seed).permutation(dataset.size)[: 2 * MOST_FITTED]
    fitted, held_out = np.array_split(order, 2)
    recipe = {
        "features": f"last hidden layer of a classifier, {HIDDEN}, standardised pixels",
        "dimension": HIDDEN[-1],
        "images": BYTES,
        "shape": list(dataset.shape),
        "classes": dataset.label_dim,
        "data": dataset.fingerprint(),
        "fitted_on": len(fitted),
        "held_out": len(held_out),
        "seed": seed,
        "epochs": ITERATIONS,
        "batch": FIT_BATCH,
        "scikit-learn": sklearn.__version__,
    }
    path = cache_file("classifiers", recipe)
    arrays = _stored(path, _shapes(dataset), say)
    if arrays is None:
        say(f"{dataset.name}: training a classifier on {len(fitted)} images")
        params = _fit(dataset, fitted, seed)
        extract = _layers(params, dataset.shape)
        accuracy = _accuracy(extract, dataset, held_out)
        arrays = params | {"held_out_accuracy": np.float32(accuracy)}
        image_files.write_arrays(path, **arrays)
    accuracy = round(float(arrays["held_out_accuracy"]), 6)
    total = hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays)))
    protocol = recipe | {"weights_sha256": total.hexdigest(), "held_out_accuracy": accuracy}
    extract = _layers(arrays, dataset.shape)
    return Extractor("classifier", "Frechet distance, classifier", protocol, extract)


EXTRACTORS: dict[str, Callable[..., Extractor]] = {
    "inception": inception,
    "pixels": pixels,
    "classifier": classifier,
}


def batched(
    forward: Callable[[Params, Array], Extracted], params: Params, batch: int
) -> Callable[[UInt8[np.ndarray, "n h w c"]], Extracted]:
    """Extractor.extract from a function of one batch.

    Batches are padded to a fixed size and split over local devices.
    """
    mesh = sharding.local_mesh()
    batch = sharding.rounded_up(batch, mesh)
    params = jax.device_put(params, sharding.replicated(mesh))
    program = jax.jit(forward, out_shardings=sharding.replicated(mesh))

    @typed
    def extract(images: UInt8[np.ndarray, "n h w c"]) -> Extracted:
        parts = []
        for start in range(0, max(len(images), 1), batch):
            part = images[start : start + batch]
            padded = np.pad(part, [(0, batch - len(part)), (0, 0), (0, 0), (0, 0)])
            outputs = program(params, jax.device_put(padded, sharding.batch_split(mesh)))
            parts.append(jax.tree.map(lambda x, n=len(part): np.asarray(x)[:n], outputs))
        return jax.tree.map(lambda *outputs: np.concatenate(outputs), *parts)

    return extract


def cache_file(kind: str, content: Mapping[str, Any]) -> pathlib.Path:
    """Path KIND/HASH.npz in simjax's cache for results determined by `content`.

    Creates the folder.

    Raises:
      ConfigError: it cannot be created.
    """
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    folder = storage.cache_directory() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the cache {folder} cannot be used: {error}; set SIMJAX_CACHE to a writable folder."
        ) from error
    return folder / f"{digest[:32]}.npz"


def _shapes(dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """Shapes of a stored classifier's arrays, all float32."""
    widths = (math.prod(dataset.shape), *HIDDEN, dataset.label_dim)
    shapes = {"mean": widths[:1], "scale": (), "held_out_accuracy": ()}
    for layer, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        shapes |= {f"kernel_{layer}": (before, after), f"bias_{layer}": (after,)}
    return shapes


def _stored(
    path: pathlib.Path, shapes: dict[str, tuple[int, ...]], say: Say
) -> dict[str, np.ndarray] | None:
    """Arrays of a cached classifier; None if missing or damaged."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in shapes}
        for name, array in arrays.items():
            if (array.shape, array.dtype) != (shapes[name], np.float32):
                raise ValueError(f"{name} is {array.dtype} {array.shape}")
        return arrays
    except Exception as error:  # any damage has the same remedy
        say(f"{path} is damaged ({error}): training the classifier again")
        return None


def _fit(dataset: Dataset, fitted: Int[np.ndarray, "n"], seed: int) -> dict[str, np.ndarray]:
    """Trains the MLP; returns its layers and the input standardisation.

    One scale for all pixels, so that nearly constant pixels are not amplified.
    """
    fitted = np.sort(fitted)  # sequential reads
    labels = dataset.labels[fitted]
    missing = np.setdiff1d(np.arange(dataset.label_dim), labels)
    if len(missing) or dataset.label_dim < 2:
        raise ConfigError(
            f"{dataset.name}: {len(missing)} of {dataset.label_dim} classes have no image among "
            f"the {len(fitted)} training images of the classifier; expected at least two classes "
            "and images of each. Choose the features 'pixels' or 'inception'."
        )
    x = image_files.as_bytes(dataset.read(fitted)).reshape(len(fitted), -1).astype(np.float32)
    mean = x.mean(0)
    scale = np.maximum((x - mean).std(), 1)  # at least one grey level
    model = MLPClassifier(
        HIDDEN,
        batch_size=min(FIT_BATCH, len(x)),
        max_iter=ITERATIONS,
        n_iter_no_change=ITERATIONS,  # no early stopping
        random_state=seed,
    )
    with warnings.catch_warnings(), threadpool_limits(1):  # faster; same result on any cores
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit((x - mean) / scale, labels)
    params = {"mean": mean, "scale": scale}
    for layer, (kernel, bias) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        if layer == len(HIDDEN) and dataset.label_dim == 2:  # scikit-learn has a single logit
            kernel, bias = (np.concatenate([0 * w, w], -1) for w in (kernel, bias))
        params |= {f"kernel_{layer}": kernel, f"bias_{layer}": bias}
    return {name: np.asarray(value, np.float32) for name, value in params.items()}


def _layers(
    params: dict[str, np.ndarray], shape: tuple[int, int, int]
) -> Callable[[UInt8[np.ndarray, "n h w c"]], Extracted]:
    """Forward pass of the classifier, for images of one shape."""

    def affine(params: Params, layer: int, x: Array) -> Array:
        return (
            jnp.matmul(x, params[f"kernel_{layer}"], precision="highest") + params[f"bias_{layer}"]
        )

    def forward(params: Params, images: Array) -> Extracted:
        if images.shape[1:] != shape:
            raise ConfigError(
                f"images have shape {images.shape[1:]}, expected {shape}, the shape that the "
                "classifier was trained on."
            )
        x = (images.reshape(len(images), -1).astype(jnp.float32) - params["mean"]) / params["scale"]
        for layer in range(len(HIDDEN)):
            x = jax.nn.relu(affine(params, layer, x))
        return Extracted(x, affine(params, len(HIDDEN), x))

    return batched(forward, params, CLASSIFIER_BATCH)


def _accuracy(extract: Callable, dataset: Dataset, held_out: Int[np.ndarray, "n"]) -> float:
    held_out = np.sort(held_out)
    found = extract(image_files.as_bytes(dataset.read(held_out))).logits.argmax(1)
    return float(np.mean(found == dataset.labels[held_out]))
