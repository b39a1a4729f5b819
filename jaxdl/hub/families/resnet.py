"""ResNet, with batch statistics that are state."""

from collections.abc import Mapping
from typing import Any

from jaxdl.hub.families.common import layer_norm, linear
from jaxdl.hub.families.family import Family
from jaxdl.hub.families.heads import num_classes, published_as
from jaxdl.hub.files import HubError
from jaxdl.hub.mapping import Rule
from jaxdl.hub.reshaping import conv
from jaxdl.models.resnet import ResNet


def build(config: Mapping[str, Any]) -> ResNet:
    """A classifier of this configuration; HubError for a layout that is not ours."""
    bottleneck = config.get("layer_type", "bottleneck") == "bottleneck"
    sizes = config.get("hidden_sizes") or (256, 512, 1024, 2048)
    widths = tuple(size // 4 if bottleneck else size for size in sizes)
    wanted = {
        "embedding_size": widths[0], "hidden_act": "relu",
        "downsample_in_bottleneck": False, "downsample_in_first_stage": False,
    }  # fmt: skip
    for name, value in wanted.items():
        if config.get(name, value) != value:
            raise HubError(f"resnet: expected {name}={value!r}, got {config[name]!r}")
    if not published_as(config, "ForImageClassification"):
        raise HubError(
            "resnet: expected ResNetForImageClassification, got "
            f"{config.get('architectures')}"
        )
    return ResNet(
        tuple(config.get("depths") or (3, 4, 6, 3)),
        widths,
        bottleneck,
        num_classes(config),
        config.get("num_channels", 3),
    )


def normed(published: str, convolution: str, norm: str) -> tuple[Rule, ...]:
    """The rules of a convolution and its batch norm."""
    return (
        Rule(f"{published}.convolution.weight", f"{convolution}/kernel", conv),
        *layer_norm(f"{published}.normalization", norm),
        Rule(f"{published}.normalization.running_mean", f"{norm}/mean"),
        Rule(f"{published}.normalization.running_var", f"{norm}/var"),
    )


def stage(number: int) -> tuple[Rule, ...]:
    """The rules of one stage, which we count from 1."""
    block = f"resnet.encoder.stages.{number}.layers.{{block}}"
    ours = f"layer{number + 1}/{{block}}"
    return (
        *[
            rule
            for i in range(3)
            for rule in normed(
                f"{block}.layer.{i}", f"{ours}/conv{i + 1}", f"{ours}/bn{i + 1}"
            )
        ],
        *normed(f"{block}.shortcut", f"{ours}/downsample/0", f"{ours}/downsample/1"),
    )


RESNET = Family(
    build=build,
    rules=(
        *normed("resnet.embedder.embedder", "conv1", "bn1"),
        *[rule for number in range(4) for rule in stage(number)],
        *linear("classifier.1", "fc"),
    ),
    layers=lambda model: None,
    # How many batches the statistics are of.
    ignore=("**.num_batches_tracked",),
    prefix="resnet.",
)
FAMILIES = {"resnet": RESNET}
