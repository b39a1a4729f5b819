"""ConvNeXt: published backbones and classifiers of images."""

from collections.abc import Mapping
from typing import Any

from jaxdl.hub.families.activations import activation
from jaxdl.hub.families.common import layer_norm, linear
from jaxdl.hub.families.family import Family
from jaxdl.hub.families.heads import num_classes, published_as
from jaxdl.hub.mapping import Rule
from jaxdl.hub.reshaping import conv
from jaxdl.models.convnext import ConvNeXt


def build(config: Mapping[str, Any]) -> ConvNeXt:
    """A ConvNeXt of this configuration, without its stochastic depth."""
    scale = config.get("layer_scale_init_value", 1e-6)
    classifies = published_as(config, "ForImageClassification")
    return ConvNeXt(
        depths=config.get("depths") or (3, 3, 9, 3),
        widths=config.get("hidden_sizes") or (96, 192, 384, 768),
        num_classes=num_classes(config) if classifies else None,
        in_features=config.get("num_channels", 3),
        patch=config.get("patch_size", 4),
        activation=activation(config.get("hidden_act", "gelu")),
        layer_scale=scale if scale > 0 else None,
        epsilon=config.get("layer_norm_eps", 1e-12),
    )


def convolution(published: str, ours: str) -> tuple[Rule, Rule]:
    """The rules of PyTorch's Conv2d: weight [out, in, h, w], and bias."""
    return (
        Rule(f"{published}.weight", f"{ours}/kernel", conv),
        Rule(f"{published}.bias", f"{ours}/bias"),
    )


S = "convnext.encoder.stages.{stage}"
LAYER, OURS, BLOCK = f"{S}.layers.{{layer}}", "stages/{stage}", "stages/{stage}/blocks"
CONVNEXT = Family(
    build=build,
    rules=(
        *convolution("convnext.embeddings.patch_embeddings", "stem"),
        *layer_norm("convnext.embeddings.layernorm", "stem_norm"),
        *layer_norm(f"{S}.downsampling_layer.0", f"{OURS}/down_norm"),
        *convolution(f"{S}.downsampling_layer.1", f"{OURS}/down"),
        *convolution(f"{LAYER}.dwconv", f"{BLOCK}/conv"),
        *layer_norm(f"{LAYER}.layernorm", f"{BLOCK}/norm"),
        *linear(f"{LAYER}.pwconv1", f"{BLOCK}/up"),
        *linear(f"{LAYER}.pwconv2", f"{BLOCK}/down"),
        Rule(f"{LAYER}.layer_scale_parameter", f"{BLOCK}/scale/scale"),
        *layer_norm("convnext.layernorm", "norm"),
        *linear("classifier", "head"),
    ),
    # The stages are a part of our paths, and the layers of each are stacked.
    layers=lambda model: None,
    prefix="convnext.",
)
FAMILIES = {"convnext": CONVNEXT}
