"""BERT and those that kept its names: MiniLM, RoBERTa, XLM-RoBERTa, CamemBERT."""

from collections.abc import Mapping
from typing import Any

from jaxdl.hub.families.activations import activation, exact_gelu
from jaxdl.hub.families.common import BLOCK, layer_norm, layer_table, linear
from jaxdl.hub.families.family import Family
from jaxdl.hub.families.heads import OUT, classifier, masked_head, published_as
from jaxdl.hub.files import HubError
from jaxdl.hub.mapping import Rule
from jaxdl.models.encoder import Encoder, EncoderConfig
from jaxdl.models.transformer import TransformerConfig


def build(config: Mapping[str, Any]) -> Encoder:
    """A BERT or RoBERTa of this configuration, without its dropout."""
    inner = TransformerConfig(
        dim=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        activation=activation(config.get("hidden_act", "gelu")),
        norm_place="sum",
        epsilon=config.get("layer_norm_eps", 1e-12),
    )
    bert = config["model_type"] == "bert"
    kind = config.get("position_embedding_type", "absolute")
    if kind != "absolute" or config.get("is_decoder", False):
        raise HubError(
            "bert: expected an encoder with absolute positions, got "
            f"position_embedding_type={kind!r}, is_decoder={config.get('is_decoder')}"
        )
    return Encoder(
        EncoderConfig(
            vocab_size=config["vocab_size"],
            blocks=inner,
            seq_len=config["max_position_embeddings"],
            position_offset=0 if bert else config.get("pad_token_id", 1) + 1,
            token_types=config.get("type_vocab_size", 2),
            pooler=published_as(config, "Model"),
            classifier=classifier(config, inner.dim),
            # RoBERTa's head has this activation whatever its blocks have.
            masked_head=masked_head(
                config, inner, inner.activation if bert else exact_gelu
            ),
        )
    )


def rules(name: str) -> tuple[Rule, ...]:
    """The rules of all but the head; `name` is what published names begin with."""
    layer = f"{name}.encoder.layer.{{layer}}"
    return (
        Rule(f"{name}.embeddings.word_embeddings.weight", "embed/embedding"),
        Rule(f"{name}.embeddings.position_embeddings.weight", "position/embedding"),
        Rule(f"{name}.embeddings.token_type_embeddings.weight", "type_embed/embedding"),
        *layer_norm(f"{name}.embeddings.LayerNorm", "embed_norm"),
        *linear(f"{layer}.attention.self.query", f"{BLOCK}/attn/q"),
        *linear(f"{layer}.attention.self.key", f"{BLOCK}/attn/k"),
        *linear(f"{layer}.attention.self.value", f"{BLOCK}/attn/v"),
        *linear(f"{layer}.attention.output.dense", f"{BLOCK}/attn/out"),
        *layer_norm(f"{layer}.attention.output.LayerNorm", f"{BLOCK}/attn_sum_norm"),
        *linear(f"{layer}.intermediate.dense", f"{BLOCK}/mlp/up"),
        *linear(f"{layer}.output.dense", f"{BLOCK}/mlp/down"),
        *layer_norm(f"{layer}.output.LayerNorm", f"{BLOCK}/mlp_sum_norm"),
        *linear(f"{name}.pooler.dense", "pooler"),
    )


BERT = Family(
    build=build,
    rules=(
        *rules("bert"),
        # The pooler of a classifier is a part of it.
        *linear("bert.pooler.dense", "classifier/dense"),
        *OUT,
        *linear("cls.predictions.transform.dense", "head/dense"),
        *layer_norm("cls.predictions.transform.LayerNorm", "head/norm"),
        Rule("cls.predictions.bias", "head/bias"),
    ),
    layers=layer_table,
    # Which sentence follows which, and copies of what is tied.
    ignore=(
        "**.position_ids", "cls.seq_relationship.*", "cls.predictions.decoder.*",
        "**pooler.dense.*",
    ),
    prefix="bert.",
    renamed=(
        (".LayerNorm.gamma", ".LayerNorm.weight"),
        (".LayerNorm.beta", ".LayerNorm.bias"),
    ),
)  # fmt: skip


def roberta(config: Mapping[str, Any]) -> Family:
    """The family of a RoBERTa: a classifier of texts has its layers inside."""
    texts = published_as(config, "ForSequenceClassification")
    out = linear("classifier.out_proj", "classifier/out") if texts else OUT
    return Family(
        build=build,
        rules=(
            *rules("roberta"),
            *linear("classifier.dense", "classifier/dense"),
            *out,
            *linear("lm_head.dense", "head/dense"),
            *layer_norm("lm_head.layer_norm", "head/norm"),
            Rule("lm_head.bias", "head/bias"),
        ),
        layers=layer_table,
        ignore=("**.position_ids", "lm_head.decoder.*", "**pooler.dense.*"),
        prefix="roberta.",
    )


FAMILIES = {
    "bert": BERT,
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), roberta),
}
