"""T5, T5 1.1 (Flan-T5), mT5 and UMT5: encoder and decoder with relative biases."""

from collections.abc import Mapping
from typing import Any

from jaxdl.hub.families.activations import activation
from jaxdl.hub.families.common import linear
from jaxdl.hub.families.family import Family
from jaxdl.hub.mapping import Layers, Rule
from jaxdl.models.t5 import T5, T5Config
from jaxdl.models.transformer import TransformerConfig
from jaxdl.nn.combine import layers


def build(config: Mapping[str, Any]) -> T5:
    """A T5 of this configuration, without its dropout."""
    encoder = config["num_layers"]
    decoder = config.get("num_decoder_layers") or encoder
    tied = config.get("tie_word_embeddings", True)
    return T5(
        T5Config(
            vocab_size=config["vocab_size"],
            encoder=_blocks(config, encoder),
            decoder=_blocks(config, decoder, causal=True, cross=True),
            num_buckets=config.get("relative_attention_num_buckets", 32),
            max_distance=config.get("relative_attention_max_distance", 128),
            shared_bias=config["model_type"] != "umt5",
            tie_embeddings=tied,
            # Newer files say it; in older ones it goes with the tied embedding.
            scale_logits=config["model_type"] != "mt5"
            and config.get("scale_decoder_outputs", tied),
        )
    )


def _feed_forward(config: Mapping[str, Any]) -> str:
    usual = "relu" if config["model_type"] == "t5" else "gated-gelu"
    return config.get("feed_forward_proj", usual)


def _blocks(
    config: Mapping[str, Any], number: int, **changes: Any
) -> TransformerConfig:
    kind = _feed_forward(config)
    gated, name = kind.startswith("gated-"), kind.removeprefix("gated-")
    # The gelu of T5 1.1 is the approximate one, whatever it is called.
    name = "gelu_new" if kind == "gated-gelu" else name
    return TransformerConfig(
        dim=config["d_model"],
        num_layers=number,
        num_heads=config["num_heads"],
        head_dim=config["d_kv"],
        hidden=config["d_ff"],
        gated=gated,
        activation=activation(name),
        norm="rms",
        epsilon=config.get("layer_norm_epsilon", 1e-6),
        bias=False,
        scale=1.0,
        **changes,
    )


def layer_tables(model: T5) -> dict[str, Layers]:
    """Where the layers of either half stand: for `{encoder}` and `{decoder}`."""
    encoder: Any = model.encoder
    decoder: Any = model.decoder
    return {"encoder": layers(encoder.blocks), "decoder": layers(decoder.blocks)}


def half(name: str, gated: bool, shared: bool) -> tuple[Rule, ...]:
    """The rules of the encoder or the decoder."""
    layer, block = f"{name}.block.{{{name}}}.layer", f"{name}/blocks/{{{name}}}"
    # The decoder's feed-forward layer comes after its cross-attention.
    last = 2 if name == "decoder" else 1
    mlp = f"{layer}.{last}.DenseReluDense"
    up = ("wi_0", "gate"), ("wi_1", "up")
    parts = [("SelfAttention", 0, "attn"), ("EncDecAttention", 1, "cross")]
    # Where the bias is shared it is the first layer's.
    biased = f"{name}.block.0.layer" if shared else layer
    bias = f"{name}/bias" if shared else f"{block}/attn/bias"
    return (
        *[
            rule
            for kind, n, ours in parts[:last]
            for p, q in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out"))
            for rule in linear(f"{layer}.{n}.{kind}.{p}", f"{block}/{ours}/{q}")
        ],
        *[
            Rule(f"{layer}.{n}.layer_norm.weight", f"{block}/{ours}_norm/scale")
            for n, ours in [*[(n, ours) for _, n, ours in parts[:last]], (last, "mlp")]
        ],
        *[
            rule
            for p, q in [*(up if gated else [("wi", "up")]), ("wo", "down")]
            for rule in linear(f"{mlp}.{p}", f"{block}/mlp/{q}")
        ],
        Rule(
            f"{biased}.0.SelfAttention.relative_attention_bias.weight",
            f"{bias}/embedding",
        ),
        Rule(f"{name}.final_layer_norm.weight", f"{name}/norm/scale"),
    )


def t5(config: Mapping[str, Any]) -> Family:
    """The family of a T5: names of the feed-forward layer say whether it is gated."""
    kinds = _feed_forward(config).startswith("gated-"), config["model_type"] != "umt5"
    return Family(
        build=build,
        rules=(
            Rule("shared.weight", "embed/embedding"),
            *half("encoder", *kinds),
            *half("decoder", *kinds),
            *linear("lm_head", "head"),
        ),
        layers=layer_tables,
        # Copies of the embedding, and a bias of cross-attention that is never used.
        ignore=(
            "encoder.embed_tokens.weight", "decoder.embed_tokens.weight",
            "**.EncDecAttention.relative_attention_bias.weight",
        ),
    )  # fmt: skip


FAMILIES = {"t5": t5, "mt5": t5, "umt5": t5}
