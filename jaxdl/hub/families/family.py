"""What a family says of itself: how its models are built, and where its weights go."""

from collections.abc import Callable, Mapping
import dataclasses
import importlib
from typing import Any

from jaxdl.core.module import Module
from jaxdl.hub.files import HubError
from jaxdl.hub.mapping import Layers, Rule


@dataclasses.dataclass(frozen=True)
class Family:
    """How published models of one kind become ours.

    build: makes the model from a published configuration (config.json as a dict).
    rules: published names <-> paths; those of absent paths are left out.
    layers: the table for `{layer}` in paths, from the model.
    ignore: patterns of published names that hold nothing learned.
    prefix: one that published names may have or lack.
    renamed: endings of names in older files, and what they are now.
    """

    build: Callable[[Mapping[str, Any]], Module]
    rules: tuple[Rule, ...]
    layers: Callable[[Any], Layers | Mapping[str, Layers] | None]
    ignore: tuple[str, ...] = ()
    prefix: str = ""
    renamed: tuple[tuple[str, str], ...] = ()

    def current_name(self, name: str) -> str:
        """The name that the rules know of a tensor in an older file."""
        for old, new in self.renamed:
            if name.endswith(old):
                return name.removesuffix(old) + new
        return name


# model_type in config.json -> the file here whose `FAMILIES` has it: a Family, or a
# function that chooses one by the configuration where names depend on that.
FILES = {
    "bert": "bert",
    "camembert": "bert",
    "clip": "clip",
    "convnext": "convnext",
    "deepseek_v3": "deepseek",
    "dinov2": "vit",
    "distilbert": "distilbert",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
    "gpt2": "gpt2",
    "gpt_oss": "gpt_oss",
    "llama": "llama",
    "mamba": "mamba",
    "mistral": "llama",
    "mixtral": "mixtral",
    "modernbert": "modernbert",
    "olmo2": "olmo2",
    "phi3": "phi3",
    "qwen2": "llama",
    "qwen3": "llama",
    "qwen3_moe": "qwen3_moe",
    "resnet": "resnet",
    "roberta": "bert",
    "siglip": "clip",
    "smollm3": "llama",
    "t5": "t5",
    "vit": "vit",
    "whisper": "whisper",
    "xlm-roberta": "bert",
}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a configuration, by its `model_type`; HubError if none has it."""
    kind = config.get("model_type")
    if kind not in FILES:
        known = ", ".join(sorted(FILES))
        raise HubError(f"model_type: expected one of {known}, got {kind!r}")
    file = importlib.import_module(f"jaxdl.hub.families.{FILES[kind]}")
    family = file.FAMILIES[kind]
    return family if isinstance(family, Family) else family(config)
