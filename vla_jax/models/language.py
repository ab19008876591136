"""What the decoders of all backbones share: the token table, the blocks with their final norm, the
output layer.

Axes: f sequences, s tokens, l text tokens, r tokens read out, c width.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from vla_jax.models.attention import Cache, Mask
from vla_jax.models.stack import PreLayers, Stack, StackConfig
from vla_jax.models.transformer import BlockConfig, Linear, Norm
from vla_jax.sharding import constrain, take_rows
from vla_jax.types import Array, Media


class Embed(nnx.Module):
    """The token table, also the output layer where that is tied."""

    def __init__(self, vocab: int, width: int, rngs: nnx.Rngs) -> None:
        # Unit variance after a scaling by sqrt(width).
        init = nnx.initializers.normal(width**-0.5)
        self.embedding = nnx.Param(
            init(rngs.params(), (vocab, width), jnp.float32), logical=("vocab", "embed")
        )

    def __call__(self, tokens: Int[Array, "f l"]) -> Float[Array, "f l c"]:
        return take_rows(self.embedding[...], tokens)

    def logits(
        self, hidden: Float[Array, "f s c"], token_range: tuple[int, int] | None = None
    ) -> Float[Array, "f s vocab"]:
        """float32 products with the rows of the table, or with some of them."""
        table = self.embedding[...]
        if token_range is not None:
            table = table[token_range[0] : token_range[1]]
        scores = jnp.einsum(
            "fsc,wc->fsw", hidden.astype(table.dtype), table, preferred_element_type=jnp.float32
        )
        return constrain(scores, "batch", None, "vocab")


def output_layer(width: int, vocab: int, made: bool, rngs: nnx.Rngs) -> Linear | None:
    """One of its own, which is not the token table; None where it is not `made`."""
    if not made:
        return None
    return Linear((width, vocab), ("embed", "vocab"), bias=False, rngs=rngs)


class Decoder(nnx.Module):
    """The blocks and the final norm."""

    def __init__(self, block: BlockConfig, depth: int, run: StackConfig, rngs: nnx.Rngs) -> None:
        self.layers = Stack(block, depth, run, rngs)
        self.norm = Norm(
            block.width, block.norm, block.eps, block.width_logical_axis, block.norm_bias
        )

    def __call__(
        self,
        x: Float[Array, "f s c"],
        mask: Mask,
        positions: Int[Array, "f s *axes"],
        num_queries: int | None = None,
        before: PreLayers | None = None,
        added: Sequence[Float[Array, "f s c"]] = (),
    ) -> Float[Array, "f r c"]:
        """See stack.Stack."""
        return self.norm(self.layers(x, mask, positions, num_queries, before, added))

    def decode(
        self,
        x: Float[Array, "f s c"],
        mask: Mask,
        positions: Int[Array, "f s *axes"],
        cache: Cache,
        before: PreLayers | None = None,
        added: Sequence[Float[Array, "f s c"]] = (),
    ) -> tuple[Float[Array, "f s c"], Cache]:
        """See stack.Stack."""
        x, cache = self.layers.decode(x, mask, positions, cache, before, added)
        return self.norm(x), cache

    def cache(self, f: int, slots: int) -> Cache:
        """An empty cache in the parameters' dtype."""
        kernel: jax.Array = self.layers.blocks.attn.k.kernel[...]
        return self.layers.cache(f, slots, kernel.dtype)


class InSequence(nnx.Module):
    """What backbones share whose images stand in the sequence, among the words; see
    types.Backbone.
    """

    cross_attends = grid_positions = False
    decoder: Decoder
    embed: Embed
    lm_head: Linear | None = None

    def embed_text(self, tokens: Int[Array, "f l"]) -> Float[Array, "f l c"]:
        """Token embeddings."""
        return self.embed(tokens)

    def logits(
        self, hidden: Float[Array, "f s c"], token_range: tuple[int, int] | None = None
    ) -> Float[Array, "f s vocab"]:
        """float32 logits of an output layer of its own, or where there is none of the token table;
        of all tokens, or of those of the ids in range(*token_range).
        """
        if self.lm_head is None:
            return self.embed.logits(hidden, token_range)
        kernel = self.lm_head.kernel[...]
        if token_range is not None:
            kernel = kernel[:, token_range[0] : token_range[1]]
        scores = jnp.einsum(
            "nsc,cv->nsv", hidden.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32
        )
        return constrain(scores, "batch", None, "vocab")

    def placed(
        self, x: Float[Array, "f s c"], positions: Int[Array, "f s *axes"]
    ) -> Float[Array, "f s c"]:
        """The tokens as the first layer gets them."""
        del positions
        return x

    def __call__(
        self,
        x: Float[Array, "f s c"],
        mask: Mask,
        positions: Int[Array, "f s *axes"],
        num_queries: int | None = None,
        media: Media | None = None,
    ) -> Float[Array, "f r c"]:
        """Hidden states after the final norm, at the last `num_queries` positions if given."""
        del media
        return self.decoder(self.placed(x, positions), mask, positions, num_queries)

    def decode(
        self,
        x: Float[Array, "f s c"],
        mask: Mask,
        positions: Int[Array, "f s *axes"],
        cache: Cache,
        media: Media | None = None,
    ) -> tuple[Float[Array, "f s c"], Cache]:
        """Hidden states of tokens that follow those in the cache, and the cache with them."""
        del media
        return self.decoder.decode(self.placed(x, positions), mask, positions, cache)

    def cache(self, f: int, slots: int) -> Cache:
        """An empty cache."""
        return self.decoder.cache(f, slots)
