"""Draws of what a sample is conditioned on, and of the noise and real images beside it."""

import jax
import jax.numpy as jnp

from simjax.typing import Array, Caption, Key, Labels


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


def caption_of(key: Key, classes: Array, captions: Caption) -> Caption:
    """One of each class's captions; their leaves are (classes, captions of a class, ...)."""
    chosen = jax.random.randint(key, classes.shape, 0, captions.dropped.shape[1])
    return jax.tree.map(lambda leaf: leaf[classes, chosen], captions)


def draw_captions(key: Key, shape: tuple[int, ...], length: int, channels: int) -> Caption:
    """Random numbers in place of encoded captions, all of full length: for timing and tests."""
    embedding = jax.random.normal(key, (*shape, length, channels), jnp.bfloat16)
    return Caption(embedding, jnp.ones((*shape, length), bool), jnp.zeros(shape, bool))
