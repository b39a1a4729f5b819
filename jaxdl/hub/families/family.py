"""What a family says of itself: how its models are built, and where its weights go."""

from collections.abc import Callable, Mapping
import dataclasses
import importlib
from typing import Any

from jaxdl.core.module import Module
from jaxdl.hub.files import HubError, short
from jaxdl.hub.mapping import Layers, Rule
from jaxdl.hub.tensors import Tensors


@dataclasses.dataclass(frozen=True)
class Family:
    """How published models of one kind become ours.

    build: makes the model from a published configuration (config.json as a dict).
    rules: published names <-> paths; those of absent paths are left out.
    layers: the table for `{layer}` in paths, from the model.
    ignore: patterns of published names that hold nothing learned.
    prefix: one that published names may have or lack.
    renamed: endings of names in older files, and what they are now.
    view: how the tensors of a file are seen: one that it keeps in parts, as a whole.
    """

    build: Callable[[Mapping[str, Any]], Module]
    rules: tuple[Rule, ...]
    layers: Callable[[Any], Layers | Mapping[str, Layers] | None]
    ignore: tuple[str, ...] = ()
    prefix: str = ""
    renamed: tuple[tuple[str, str], ...] = ()
    view: Callable[[Tensors], Tensors] = lambda tensors: tensors

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
    "clip_text_model": "clip",
    "clip_vision_model": "clip",
    "convnext": "convnext",
    "deepseek_v3": "deepseek",
    "dinov2": "vit",
    "dinov2_with_registers": "vit",
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
    "mt5": "t5",
    "olmo2": "olmo2",
    "phi3": "phi3",
    "qwen2": "llama",
    "qwen2_moe": "qwen3_moe",
    "qwen3": "llama",
    "qwen3_moe": "qwen3_moe",
    "resnet": "resnet",
    "roberta": "bert",
    "siglip": "clip",
    "siglip_text_model": "clip",
    "siglip_vision_model": "clip",
    "smollm3": "llama",
    "t5": "t5",
    "umt5": "t5",
    "vit": "vit",
    "whisper": "whisper",
    "xlm-roberta": "bert",
}


# Fields of config.json that count things which are made or named one by one.
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers")
COUNTS += ("num_decoder_layers", "decoder_layers")
COUNTS += ("num_experts", "num_local_experts", "n_routed_experts")
LARGEST_COUNT = 1 << 16


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a configuration, by its `model_type`; HubError if none has it."""
    check_counts(config)
    kind = config.get("model_type")
    if kind not in FILES:
        known = ", ".join(sorted(FILES))
        raise HubError(f"model_type: expected one of {known}, got {kind!r}")
    file = importlib.import_module(f"jaxdl.hub.families.{FILES[kind]}")
    family = file.FAMILIES[kind]
    return family if isinstance(family, Family) else family(config)


def check_counts(config: Any) -> None:
    """HubError for more layers or experts than memory has room to list."""
    if not isinstance(config, Mapping):
        raise HubError(f"config.json: expected an object, got {short(config)}")
    for name, value in config.items():
        if isinstance(value, Mapping):
            check_counts(value)
        elif name in COUNTS and isinstance(value, int) and value > LARGEST_COUNT:
            raise HubError(f"{name}: expected at most {LARGEST_COUNT}, got {value}")
