"""DistilBERT: half of BERT's layers, without token types and pooler."""

from collections.abc import Mapping
from typing import Any

import jax

from jaxdl.hub.families.activations import activation
from jaxdl.hub.families.common import BLOCK, layer_norm, layer_table, linear
from jaxdl.hub.families.family import Family
from jaxdl.hub.families.heads import OUT, classifier, masked_head
from jaxdl.hub.mapping import Rule
from jaxdl.models.encoder import Encoder, EncoderConfig
from jaxdl.models.transformer import TransformerConfig


def build(config: Mapping[str, Any]) -> Encoder:
    """A DistilBERT of this configuration, without its dropout."""
    inner = TransformerConfig(
        dim=config["dim"],
        num_layers=config["n_layers"],
        num_heads=config["n_heads"],
        hidden=config["hidden_dim"],
        activation=activation(config.get("activation", "gelu")),
        norm_place="sum",
        epsilon=1e-12,
    )
    return Encoder(
        EncoderConfig(
            vocab_size=config["vocab_size"],
            blocks=inner,
            seq_len=config["max_position_embeddings"],
            token_types=0,
            masked_head=masked_head(config, inner, inner.activation),
            classifier=classifier(config, inner.dim, jax.nn.relu),
        )
    )


LAYER = "distilbert.transformer.layer.{layer}"
DISTILBERT = Family(
    build=build,
    rules=(
        Rule("distilbert.embeddings.word_embeddings.weight", "embed/embedding"),
        Rule("distilbert.embeddings.position_embeddings.weight", "position/embedding"),
        *layer_norm("distilbert.embeddings.LayerNorm", "embed_norm"),
        *linear(f"{LAYER}.attention.q_lin", f"{BLOCK}/attn/q"),
        *linear(f"{LAYER}.attention.k_lin", f"{BLOCK}/attn/k"),
        *linear(f"{LAYER}.attention.v_lin", f"{BLOCK}/attn/v"),
        *linear(f"{LAYER}.attention.out_lin", f"{BLOCK}/attn/out"),
        *layer_norm(f"{LAYER}.sa_layer_norm", f"{BLOCK}/attn_sum_norm"),
        *linear(f"{LAYER}.ffn.lin1", f"{BLOCK}/mlp/up"),
        *linear(f"{LAYER}.ffn.lin2", f"{BLOCK}/mlp/down"),
        *layer_norm(f"{LAYER}.output_layer_norm", f"{BLOCK}/mlp_sum_norm"),
        *linear("pre_classifier", "classifier/dense"),
        *OUT,
        *linear("vocab_transform", "head/dense"),
        *layer_norm("vocab_layer_norm", "head/norm"),
        Rule("vocab_projector.bias", "head/bias"),
    ),
    layers=layer_table,
    ignore=("**.position_ids", "vocab_projector.weight"),
    prefix="distilbert.",
)
FAMILIES = {"distilbert": DISTILBERT}
