"""What samples are conditioned on: classes, captions or nothing; a network brings one of these.

Called where conditions are drawn, dropped, described or handed to an exported program.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from simjax.typing import Array, Caption, Key, Labels

LENGTH = 120  # tokens of a caption where the network does not say: PixArt-alpha's


@dataclasses.dataclass(frozen=True)
class Classes:
    """One of `count` classes, as one-hot rows (b, count); of 0 classes the rows are empty."""

    count: int
    reads_prompts: ClassVar[bool] = False
    has_null: ClassVar[bool] = True

    def of(self, numbers: Array) -> Labels:
        """Class numbers (b,) to rows."""
        return jax.nn.one_hot(numbers, self.count)

    def draw(self, key: Key, batch: int) -> Labels:
        """Uniform classes."""
        return self.of(jax.random.randint(key, (batch,), 0, max(self.count, 1)))

    def null(self, cond: Labels) -> Labels:
        """No class: rows of zeros."""
        return jnp.zeros_like(cond)

    def describe(self) -> str:
        """For a person."""
        return f"one of {self.count} classes" if self.count else "nothing: there are no classes"

    def arguments(self, cond: Labels) -> tuple[Array, ...]:
        """What an exported program takes: class numbers, of which -1 is none."""
        if not self.count:
            return ()
        return (jnp.where(cond.any(1), cond.argmax(1), -1).astype(jnp.int32),)

    def argument_shapes(self, batch: Any) -> list[jax.ShapeDtypeStruct]:
        """Of `arguments`; `batch` may be symbolic."""
        return [jax.ShapeDtypeStruct((batch,), jnp.int32)] if self.count else []

    def of_arguments(self, batch: Any, given: Sequence[Array]) -> Labels:
        """The inverse of `arguments`."""
        return self.of(given[0]) if self.count else jnp.zeros((batch, 0))

    def examples(self, key: Key, count: int) -> Labels:
        """Conditions that differ, to compare programs with."""
        return self.of(jnp.arange(count) % max(self.count, 1))


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Captions: what a text encoder makes of prompts.

    Args:
      channels: of the encoder.
      limit: tokens of the learned embedding of no caption, and so of any; 0: there is none.
    """

    channels: int
    limit: int
    reads_prompts: ClassVar[bool] = True

    @property
    def has_null(self) -> bool:
        """Whether a caption can be dropped."""
        return self.limit > 0

    @property
    def length(self) -> int:
        """Tokens of a caption in a program of fixed shapes."""
        return self.limit or LENGTH

    def draw(self, key: Key, batch: int | tuple[int, ...]) -> Caption:
        """Random numbers in place of encoded prompts, all of full length: for timing and shapes."""
        shape = batch if isinstance(batch, tuple) else (batch,)
        size = (*shape, self.length, self.channels)
        embedding = jax.random.normal(key, size, jnp.bfloat16)
        return Caption(embedding, jnp.ones(size[:-1], bool), jnp.zeros(shape, bool))

    def null(self, cond: Caption) -> Caption:
        """The same captions, dropped: the network's own embedding stands for them."""
        return cond.replace(dropped=jnp.ones_like(cond.dropped))

    def describe(self) -> str:
        """For a person."""
        return (
            f"a prompt as a T5 encoder gives it: {self.length} tokens of {self.channels} channels, "
            "and a mask of those that are no padding"
        )

    def arguments(self, cond: Caption) -> tuple[Array, ...]:
        """What an exported program takes: embedding and mask of `length` tokens."""
        return cond.embedding.astype(jnp.float32), cond.mask

    def argument_shapes(self, batch: Any) -> list[jax.ShapeDtypeStruct]:
        """Of `arguments`; `batch` may be symbolic."""
        words = (batch, self.length)
        return [
            jax.ShapeDtypeStruct((*words, self.channels), jnp.float32),
            jax.ShapeDtypeStruct(words, jnp.bool_),
        ]

    def of_arguments(self, batch: Any, given: Sequence[Array]) -> Caption:
        """The inverse of `arguments`."""
        return Caption(*given, jnp.zeros(batch, bool))

    def examples(self, key: Key, count: int) -> Caption:
        """Conditions that differ, to compare programs with: captions of several lengths."""
        drawn = self.draw(key, count)
        lengths = np.arange(1, count + 1)[:, None] * self.length // count
        mask = jnp.arange(self.length) < lengths
        return Caption(drawn.embedding.astype(jnp.float32), mask, drawn.dropped)


Conditioning = Classes | Prompts
