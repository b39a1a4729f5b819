"""ModernBERT: rotary positions, windows in most layers, gated feed-forward layers."""

from collections.abc import Mapping
from typing import Any

from jaxdl.hub.families.activations import activation
from jaxdl.hub.families.common import BLOCK, layer_norm, layer_table, linear
from jaxdl.hub.families.family import Family
from jaxdl.hub.families.heads import OUT, masked_head, num_classes, published_as
from jaxdl.hub.families.rotary import rope
from jaxdl.hub.files import HubError
from jaxdl.hub.mapping import Rule
from jaxdl.hub.reshaping import transpose
from jaxdl.models.decoder import Layer
from jaxdl.models.encoder import Classifier, Encoder, EncoderConfig
from jaxdl.models.transformer import TransformerConfig
from jaxdl.nn.norm import LayerNorm


def build(config: Mapping[str, Any]) -> Encoder:
    """A ModernBERT of this configuration, without its dropout."""
    norm_bias = config.get("norm_bias", False)
    biases = [config.get(f"{n}_bias", False) for n in ("norm", "mlp", "attention")]
    if len(set(biases)) > 1:
        raise HubError(
            "modernbert: expected norm_bias, mlp_bias and attention_bias to be the "
            f"same, got {biases}"
        )
    inner = TransformerConfig(
        dim=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        gated=True,
        activation=activation(config.get("hidden_activation", "gelu")),
        skip_first_norm=True,
        epsilon=config.get("norm_eps", 1e-5),
        bias=norm_bias,
        layers=each_layer(config),
    )
    return Encoder(
        EncoderConfig(
            vocab_size=config["vocab_size"],
            blocks=inner,
            seq_len=None,
            token_types=0,
            final_norm=True,
            masked_head=masked_head(
                config,
                inner,
                activation(config.get("classifier_activation", "gelu")),
                bias=config.get("decoder_bias", True),
                dense_bias=config.get("classifier_bias", False),
                norm_bias=norm_bias,
            ),
            classifier=classifier(config, inner),
        )
    )


def classifier(
    config: Mapping[str, Any], inner: TransformerConfig
) -> Classifier | None:
    """What scores classes; that of tokens has a layer before it too."""
    texts = published_as(config, "ForSequenceClassification")
    if not texts and not published_as(config, "ForTokenClassification"):
        return None
    pool = {"cls": "first", "mean": "mean"}.get(config.get("classifier_pooling", "cls"))
    if texts and pool is None:
        raise HubError(
            "classifier_pooling: expected cls or mean, got "
            f"{config['classifier_pooling']!r}"
        )
    return Classifier(
        inner.dim,
        num_classes(config),
        pool if texts else None,  # type: ignore[arg-type]
        activation(config.get("classifier_activation", "gelu")),
        config.get("classifier_bias", False),
        LayerNorm(inner.dim, inner.epsilon, bias=inner.bias),
    )


def each_layer(config: Mapping[str, Any]) -> tuple[Layer, ...]:
    """One `Layer` for each: those with a window have a rotation of their own."""
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    period = config.get("global_attn_every_n_layers", 3)
    kinds = config.get("layer_types") or [
        "sliding_attention" if i % period else "full_attention"
        for i in range(config["num_hidden_layers"])
    ]
    rotations = config.get("rope_parameters") or {
        # As the published files say it.
        "full_attention": {"rope_theta": config.get("global_rope_theta", 160_000.0)},
        "sliding_attention": {"rope_theta": config.get("local_rope_theta") or 10_000.0},
    }
    config = {**config, "rope_parameters": rotations}
    # `local_attention` is the width of the window, both sides of the query together.
    window = config.get("local_attention", 128) // 2 + 1
    return tuple(
        Layer(
            rope(config, head_dim, kind=kind),
            window if kind == "sliding_attention" else None,
        )
        for kind in kinds
    )


LAYER = "model.layers.{layer}"
QKV, GATE_UP = (
    {
        kind: tuple(f"{BLOCK}/{part}/{kind}" for part in parts)
        for kind in ("kernel", "bias")
    }
    for parts in (("attn/q", "attn/k", "attn/v"), ("mlp/gate", "mlp/up"))
)
MODERNBERT = Family(
    build=build,
    rules=(
        Rule("model.embeddings.tok_embeddings.weight", "embed/embedding"),
        *layer_norm("model.embeddings.norm", "embed_norm"),
        *layer_norm(f"{LAYER}.attn_norm", f"{BLOCK}/attn_norm"),
        Rule(f"{LAYER}.attn.Wqkv.weight", QKV["kernel"], transpose),
        Rule(f"{LAYER}.attn.Wqkv.bias", QKV["bias"]),
        *linear(f"{LAYER}.attn.Wo", f"{BLOCK}/attn/out"),
        *layer_norm(f"{LAYER}.mlp_norm", f"{BLOCK}/mlp_norm"),
        Rule(f"{LAYER}.mlp.Wi.weight", GATE_UP["kernel"], transpose),
        Rule(f"{LAYER}.mlp.Wi.bias", GATE_UP["bias"]),
        *linear(f"{LAYER}.mlp.Wo", f"{BLOCK}/mlp/down"),
        *layer_norm("model.final_norm", "norm"),
        *linear("head.dense", "head/dense"),
        *layer_norm("head.norm", "head/norm"),
        *linear("head.dense", "classifier/dense"),
        *layer_norm("head.norm", "classifier/norm"),
        *OUT,
        Rule("decoder.bias", "head/bias"),
    ),
    layers=layer_table,
    ignore=("decoder.weight",),
    prefix="model.",
)
FAMILIES = {"modernbert": MODERNBERT}
