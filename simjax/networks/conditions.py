"""Condition types of a network: classes, captions or none.

Conditions are drawn, dropped, described and passed to exported programs here.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from simjax.typing import Array, Caption, Key, Labels

LENGTH = 120  # default tokens per caption; PixArt-alpha


@dataclasses.dataclass(frozen=True)
class Classes:
    """Class labels, one-hot (b, count); count = 0 is unconditional.

    >>> Classes(3).of(jnp.array([2])).tolist()
    [[0.0, 0.0, 1.0]]
    """

    count: int
    reads_prompts: ClassVar[bool] = False
    has_null: ClassVar[bool] = True

    def of(self, numbers: Array) -> Labels:
        """Class indices (b,) to one-hot rows."""
        return jax.nn.one_hot(numbers, self.count)

    def draw(self, key: Key, batch: int) -> Labels:
        """Uniformly drawn classes."""
        return self.of(jax.random.randint(key, (batch,), 0, max(self.count, 1)))

    def null(self, cond: Labels) -> Labels:
        """The null condition: rows of zeros."""
        return jnp.zeros_like(cond)

    def describe(self) -> str:
        """Human-readable description."""
        return (
            f"one of {self.count} classes" if self.count else "none: the network is unconditional"
        )

    def arguments(self, cond: Labels) -> tuple[Array, ...]:
        """Inputs of an exported program: class indices, -1 for unconditional."""
        if not self.count:
            return ()
        return (jnp.where(cond.any(1), cond.argmax(1), -1).astype(jnp.int32),)

    def argument_shapes(self, batch: Any) -> list[jax.ShapeDtypeStruct]:
        """Shapes of `arguments`; `batch` may be symbolic."""
        return [jax.ShapeDtypeStruct((batch,), jnp.int32)] if self.count else []

    def of_arguments(self, batch: Any, given: Sequence[Array]) -> Labels:
        """The inverse of `arguments`."""
        return self.of(given[0]) if self.count else jnp.zeros((batch, 0))

    def examples(self, key: Key, count: int) -> Labels:
        """Distinct conditions, for comparing programs."""
        return self.of(jnp.arange(count) % max(self.count, 1))


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Captions: text-encoder features of prompts.

    Args:
      channels: width of the encoder.
      limit: tokens of the learned null-caption embedding, the maximum caption length; 0: the
        network has none.
    """

    channels: int
    limit: int
    reads_prompts: ClassVar[bool] = True

    @property
    def has_null(self) -> bool:
        """Whether captions can be dropped."""
        return self.limit > 0

    @property
    def length(self) -> int:
        """Tokens per caption in programs of fixed shapes."""
        return self.limit or LENGTH

    def draw(self, key: Key, batch: int | tuple[int, ...]) -> Caption:
        """Random features of full length, for timing and shapes."""
        shape = batch if isinstance(batch, tuple) else (batch,)
        size = (*shape, self.length, self.channels)
        embedding = jax.random.normal(key, size, jnp.bfloat16)
        return Caption(embedding, jnp.ones(size[:-1], bool), jnp.zeros(shape, bool))

    def null(self, cond: Caption) -> Caption:
        """The captions marked as dropped; the network substitutes its null embedding."""
        return cond.replace(dropped=jnp.ones_like(cond.dropped))

    def describe(self) -> str:
        """Human-readable description."""
        return (
            f"a prompt's T5 features: {self.length} tokens of {self.channels} channels, and a mask "
            "that is false for padding"
        )

    def arguments(self, cond: Caption) -> tuple[Array, ...]:
        """Inputs of an exported program: embedding and mask of `length` tokens."""
        return cond.embedding.astype(jnp.float32), cond.mask

    def argument_shapes(self, batch: Any) -> list[jax.ShapeDtypeStruct]:
        """Shapes of `arguments`; `batch` may be symbolic."""
        words = (batch, self.length)
        return [
            jax.ShapeDtypeStruct((*words, self.channels), jnp.float32),
            jax.ShapeDtypeStruct(words, jnp.bool_),
        ]

    def of_arguments(self, batch: Any, given: Sequence[Array]) -> Caption:
        """The inverse of `arguments`."""
        return Caption(*given, jnp.zeros(batch, bool))

    def examples(self, key: Key, count: int) -> Caption:
        """Distinct captions of several lengths, for comparing programs."""
        drawn = self.draw(key, count)
        lengths = np.arange(1, count + 1)[:, None] * self.length // count
        mask = jnp.arange(self.length) < lengths
        return Caption(drawn.embedding.astype(jnp.float32), mask, drawn.dropped)


Conditioning = Classes | Prompts
