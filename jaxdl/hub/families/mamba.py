"""Mamba: a decoder whose layers are state-space recurrences."""

from collections.abc import Mapping
from typing import Any

from jaxdl.core import init as initializers
from jaxdl.hub.families.common import layer_table, linear
from jaxdl.hub.families.family import Family
from jaxdl.hub.mapping import Rule
from jaxdl.hub.reshaping import conv, transpose
from jaxdl.models.decoder import Decoder, DecoderConfig, Layer
from jaxdl.models.mamba import MambaBlock
from jaxdl.nn.norm import RMSNorm
from jaxdl.nn.state_space import Mamba


def build(config: Mapping[str, Any]) -> Decoder:
    """A Mamba of this configuration."""
    dim, epsilon = config["hidden_size"], config.get("layer_norm_epsilon", 1e-5)
    mixer = Mamba(
        dim,
        config.get("state_size", 16),
        config.get("intermediate_size") or config.get("expand", 2) * dim,
        config.get("conv_kernel", 4),
        int(config["time_step_rank"]),
        bool(config.get("use_bias", False)),
        kernel_init=initializers.normal(0.02),
    )
    number = config["num_hidden_layers"]
    layer = Layer(block=MambaBlock(RMSNorm(dim, epsilon), mixer))
    return Decoder(
        DecoderConfig(
            vocab_size=config["vocab_size"],
            dim=dim,
            num_layers=number,
            norm="rms",
            epsilon=epsilon,
            positions="rope",
            layers=(layer,) * number,
            bias=False,
            tie_embeddings=config.get("tie_word_embeddings", True),
        )
    )


MIXER, OURS = "backbone.layers.{layer}.mixer", "blocks/{layer}/mixer"
MAMBA = Family(
    build=build,
    rules=(
        Rule("backbone.embeddings.weight", "embed/embedding"),
        Rule("backbone.norm_f.weight", "norm/scale"),
        Rule("lm_head.weight", "head/kernel", transpose),
        Rule("backbone.layers.{layer}.norm.weight", "blocks/{layer}/norm/scale"),
        *linear(f"{MIXER}.in_proj", f"{OURS}/project"),
        *linear(f"{MIXER}.x_proj", f"{OURS}/select"),
        *linear(f"{MIXER}.dt_proj", f"{OURS}/step"),
        *linear(f"{MIXER}.out_proj", f"{OURS}/out"),
        Rule(f"{MIXER}.conv1d.weight", f"{OURS}/conv/kernel", conv),
        Rule(f"{MIXER}.conv1d.bias", f"{OURS}/conv/bias"),
        Rule(f"{MIXER}.A_log", f"{OURS}/log_decay"),
        Rule(f"{MIXER}.D", f"{OURS}/skip"),
    ),
    layers=layer_table,
)
FAMILIES = {"mamba": MAMBA}
