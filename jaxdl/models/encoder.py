"""Text encoders: BERT and, by other settings, its descendants and text towers."""

from collections.abc import Callable
import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdl.core import init as initializers
from jaxdl.core.keys import MISSING, OptionalKey, split
from jaxdl.core.module import Module, fill, part, scoped
from jaxdl.core.naming import expect
from jaxdl.core.param import Param
from jaxdl.core.tap_primitive import tap
from jaxdl.models.block import norm, residual, scores
from jaxdl.models.transformer import TransformerConfig, blocks
from jaxdl.nn.dropout import Dropout
from jaxdl.nn.linear import Embedding, Linear
from jaxdl.nn.norm import LayerNorm
from jaxdl.nn.position import AddPosition


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The sizes and choices that make a text encoder; the defaults are BERT's (base).

    blocks: those of the transformer; RoPE and windows are in its `layers`.
    seq_len: rows of the table of learned positions; None for none.
    position_offset: rows of it before position 0 (RoBERTa: 2).
    token_types: kinds of segments that are told apart ("sentence A", "B"); 0 for none.
    embed_norm, final_norm: norms of the embedding, and of what the last block leaves.
    pooler: a layer on the first token's state, for `Encoder.pooled`.
    masked_head: what guesses masked tokens; the model then returns logits.
    classifier: what scores classes; the model then returns its logits. No other head
    beside it.

    Raises ValueError for both of the last two.
    """

    vocab_size: int = 30522
    blocks: TransformerConfig = TransformerConfig(norm_place="sum", epsilon=1e-12)
    seq_len: int | None = 512
    position_offset: int = 0
    token_types: int = 2
    embed_norm: bool = True
    final_norm: bool = False
    pooler: bool = False
    masked_head: "MaskedHead | None" = None
    classifier: "Classifier | None" = None

    def __post_init__(self):
        if self.masked_head is not None and self.classifier is not None:
            raise ValueError(
                "EncoderConfig: expected a masked_head or a classifier, got both"
            )


class MaskedHead(Module):
    """What the embedding scores to guess tokens: [batch, seq, dim] -> the same.

    norm(activation(dense(x))) (Devlin et al. 2018, arXiv:1810.04805). The parameter
    `bias` [vocab_size] is added to the scores.
    """

    dim: int
    vocab_size: int
    activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu
    epsilon: float = 1e-12
    bias: bool = True
    dense_bias: bool = True
    norm_bias: bool = True
    dense: Module = part(default=None)
    norm: Module = part(default=None)

    def __post_init__(self):
        init, axes = initializers.normal(0.02), ("embed", None)
        fill(
            self,
            dense=Linear(self.dim, self.dim, self.dense_bias, axes, init),
            norm=LayerNorm(self.dim, self.epsilon, bias=self.norm_bias),
        )

    def spec(self):
        spec = dict(super().spec())
        if self.bias:
            shape, axes = (self.vocab_size,), ("vocab",)
            spec["bias"] = Param(shape, initializers.zeros, axes, role="bias")
        return spec

    def __call__(
        self, params, x: Float[Array, "batch seq dim"]
    ) -> Float[Array, "batch seq dim"]:
        x = self.activation(self.dense(params["dense"], x))
        return self.norm(params["norm"], x)


class Classifier(Module):
    """Scores classes, of texts or of tokens: [batch, seq, dim] -> [..., num_classes].

    pool: what stands for a text, the state of its "first" token or the "mean" of its
    real ones; None scores every token, [batch, seq, num_classes].
    activation: of a layer between, norm(activation(dense(x))); None for no layer.
    """

    dim: int
    num_classes: int
    pool: Literal["first", "mean"] | None = "first"
    activation: Callable[[jax.Array], jax.Array] | None = jnp.tanh
    dense_bias: bool = True
    norm: Module | None = None
    dense: Module | None = part(default=None)
    out: Module = part(default=None)

    def __post_init__(self):
        if self.pool not in ("first", "mean", None):
            raise ValueError(
                f"Classifier.pool: expected first, mean or None, got {self.pool!r}"
            )
        dim, init = self.dim, initializers.normal(0.02)
        if self.activation is not None:
            fill(self, dense=Linear(dim, dim, self.dense_bias, ("embed", None), init))
        out = Linear(dim, self.num_classes, True, ("embed", "vocab"), init)
        fill(self, out=out)

    def __call__(
        self,
        params,
        x: Float[Array, "batch seq dim"],
        *,
        mask: Bool[Array, "batch seq"] | None = None,
    ) -> Float[Array, "batch ... classes"]:
        if self.pool is not None:
            x = x[:, 0] if self.pool == "first" else mean_of_real(x, mask)
        if self.dense is not None and self.activation is not None:
            x = self.activation(self.dense(params["dense"], x))
        if self.norm is not None:
            x = self.norm(params["norm"], x)
        return tap(self.out(params["out"], x), "logits")


def mean_of_real(
    x: Float[Array, "batch seq dim"], mask: Bool[Array, "batch seq"] | None
) -> Float[Array, "batch dim"]:
    """The mean state of tokens that are no padding: [batch, seq, dim] -> [batch, dim].

    0 for a text that has none.
    """
    if mask is None:
        return x.mean(1)
    real = mask[..., None]
    return jnp.where(real, x, 0).sum(1) / jnp.maximum(real.sum(1), 1)


class Encoder(Module):
    """Reads text both ways: int [batch, seq] -> states [batch, seq, dim], or logits.

    (Devlin et al. 2018, arXiv:1810.04805.) With a masked_head it returns logits [batch,
    seq, vocab_size], with a classifier [batch, num_classes] or those of every token.
    `hidden` gives the states all the same, `pooled` one of them, and `sentence` a unit
    vector for each text. `mask` [batch, seq] is False where a token is padding, and
    `token_types` [batch, seq] are 0 if not given. Positions count from 0 along the row;
    where there is an offset they count real tokens, as RoBERTa does.

    Taps: `embed`, `blocks/resid_pre`, `blocks/resid_mid`, `blocks/resid_post`,
    `blocks/mlp/hidden`, those of `nn.Attention` under `blocks/attn`, `logits`.
    """

    config: EncoderConfig
    embed: Module = part(default=None)
    type_embed: Module | None = part(default=None)
    position: Module | None = part(default=None)
    embed_norm: Module | None = part(default=None)
    drop: Module = part(default=None)
    blocks: Module = part(default=None)
    norm: Module | None = part(default=None)
    pooler: Module | None = part(default=None)
    head: Module | None = part(default=None)
    classifier: Module | None = part(default=None)

    def __post_init__(self):
        config, inner = self.config, self.config.blocks
        fill(
            self,
            embed=Embedding(config.vocab_size, inner.dim),
            drop=Dropout(inner.dropout),
            blocks=blocks(inner),
            head=config.masked_head,
            classifier=config.classifier,
        )
        if config.token_types:
            table = Embedding(config.token_types, inner.dim, (None, "embed"))
            fill(self, type_embed=table)
        if config.seq_len is not None:
            table = Embedding(config.seq_len, inner.dim, (None, "embed"))
            fill(self, position=AddPosition(table))
        if config.embed_norm:
            fill(self, embed_norm=norm(inner, inner.dim))
        if config.final_norm:
            fill(self, norm=norm(inner, inner.dim))
        if config.pooler:
            axes, init = ("embed", None), initializers.normal(0.02)
            fill(self, pooler=Linear(inner.dim, inner.dim, True, axes, init))

    def __call__(
        self,
        params,
        tokens: Int[Array, "batch seq"],
        *,
        mask: Bool[Array, "batch seq"] | None = None,
        **given: Any,
    ) -> Any:
        """The keywords are those of `hidden`."""
        x = self.hidden(params, tokens, mask=mask, **given)
        if self.classifier is not None:
            return self.classifier(params["classifier"], x, mask=mask)
        return x if self.head is None else self.logits(params, x)

    @scoped
    def hidden(
        self,
        params,
        tokens: Int[Array, "batch seq"],
        *,
        key: OptionalKey = MISSING,
        mask: Bool[Array, "batch seq"] | None = None,
        token_types: Int[Array, "batch seq"] | None = None,
        segment_ids: Int[Array, "batch seq"] | None = None,
        positions: Int[Array, "..."] | None = None,
    ) -> Float[Array, "batch seq dim"]:
        """The states of the tokens: int [batch, seq] -> [batch, seq, dim].

        `segment_ids` keep packed texts apart; see `nn.Attention`.
        """
        expect(tokens.ndim == 2, "int [batch, seq]", tokens)
        if mask is not None:
            fits = mask.shape == tokens.shape and mask.dtype == bool
            expect(fits, f"a mask of bools {list(tokens.shape)}", mask)
        embed_key, blocks_key = split(key, 2)
        x = self._embedded(params, tokens, mask, token_types, positions)
        x = self.drop(params["drop"], residual(x, "embed"), key=embed_key)
        x = self.blocks(
            params["blocks"], x, key=blocks_key,
            mask=None if mask is None else mask[:, None, None],
            segment_ids=segment_ids, positions=positions,
        )  # fmt: skip
        return x if self.norm is None else self.norm(params["norm"], x)

    @scoped
    def logits(
        self, params, hidden: Float[Array, "batch seq dim"]
    ) -> Float[Array, "batch seq vocab"]:
        """Scores every token at each place: [batch, seq, dim] -> [batch, seq, vocab].

        Raises ValueError for a model without a masked_head.
        """
        head, embed = self.head, self.embed
        expect(isinstance(head, MaskedHead), "a model with a masked_head", self.config)
        x = head(params["head"], hidden)  # type: ignore[misc]
        logits = embed.logits(params["embed"], x)  # type: ignore[attr-defined]
        if "bias" in params["head"]:
            logits = logits + params["head"]["bias"]
        return scores(logits)

    @scoped
    def pooled(
        self, params, hidden: Float[Array, "batch seq dim"]
    ) -> Float[Array, "batch dim"]:
        """tanh(dense(the first token's state)): [batch, seq, dim] -> [batch, dim].

        Raises ValueError for a model without a pooler.
        """
        expect(self.pooler is not None, "a model with a pooler", self.config)
        return jnp.tanh(self.pooler(params["pooler"], hidden[:, 0]))  # type: ignore[misc]

    @scoped
    def sentence(
        self,
        params,
        tokens: Int[Array, "batch seq"],
        *,
        mask: Bool[Array, "batch seq"] | None = None,
        **given: Any,
    ) -> Float[Array, "batch dim"]:
        """Texts as vectors of length 1: int [batch, seq] -> [batch, dim].

        Each is the mean state of its real tokens (Reimers and Gurevych 2019,
        arXiv:1908.10084); the scalar product of two is the cosine between them.
        """
        mean = mean_of_real(self.hidden(params, tokens, mask=mask, **given), mask)
        length = jnp.linalg.norm(mean, axis=-1, keepdims=True)
        return mean / jnp.maximum(length, 1e-12)

    def _embedded(self, params, tokens, mask, token_types, positions):
        x = self.embed(params["embed"], tokens)
        if self.type_embed is not None:
            if token_types is None:
                token_types = jnp.zeros_like(tokens)
            x = x + self.type_embed(params["type_embed"], token_types)
        else:
            expect(token_types is None, "no token_types for this model", token_types)
        if self.position is not None:
            positions = self._places(tokens, mask, positions)
            x = self.position(params["position"], x, positions=positions)
        if self.embed_norm is not None:
            x = self.embed_norm(params["embed_norm"], x)
        return x

    def _places(self, tokens, mask, positions):
        """The rows of the table of positions; None for its first ones."""
        offset = self.config.position_offset
        if not offset:
            return positions
        if positions is None:
            longest = (self.config.seq_len or 0) - offset
            fits = tokens.shape[1] <= longest
            expect(fits, f"a sequence of at most {longest}", tokens)
            real = jnp.ones(tokens.shape, bool) if mask is None else mask
            positions = jnp.where(real, jnp.cumsum(real, axis=1) - 1, -1)
        # RoBERTa's padding has a row of its own, the one before the first.
        return positions + offset
