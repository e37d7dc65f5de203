"""Random batches of real images with classes, and captions of classes."""

import jax

from simjax.typing import Array, Caption, Key


def draw_data(key: Key, images: Array, classes: Array, batch: int) -> tuple[Array, Array]:
    """A batch of (images, class numbers), drawn with replacement."""
    index = jax.random.randint(key, (batch,), 0, len(images))
    return images[index], classes[index]


def caption_of(key: Key, classes: Array, captions: Caption) -> Caption:
    """A random caption per class; leaves are (classes, captions per class, ...)."""
    chosen = jax.random.randint(key, classes.shape, 0, captions.dropped.shape[1])
    return jax.tree.map(lambda leaf: leaf[classes, chosen], captions)
