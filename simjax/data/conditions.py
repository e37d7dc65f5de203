"""Draws of what a sample is conditioned on, and of the noise and real images beside it."""

import jax

from simjax.typing import Array, Key, Labels


def one_hot(classes: Array, label_dim: int) -> Labels:
    """Class numbers (b,) to rows (b, label_dim); label_dim 0 gives empty rows: unconditional."""
    return jax.nn.one_hot(classes, label_dim)


def draw_labels(key: Key, batch: int, label_dim: int) -> Labels:
    """Uniform class labels, shape (batch, label_dim)."""
    return one_hot(jax.random.randint(key, (batch,), 0, max(label_dim, 1)), label_dim)


def draw_data(key: Key, images: Array, classes: Array, batch: int) -> tuple[Array, Array]:
    """A batch of (images, class numbers), drawn with replacement."""
    index = jax.random.randint(key, (batch,), 0, len(images))
    return images[index], classes[index]
