"""The metadata of a GGUF file, read by tables of keys: what config.json would say."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxdl.hub.families.family import check_counts
from jaxdl.hub.files import HubError, short
from jaxdl.hub.tensors import Tensors

REQUIRED: Any = object()
Config = dict[str, Any]


class Key(NamedTuple):
    """A key of the metadata, without the architecture before it, and what it holds.

    default: where the file has none, REQUIRED if it must.
    """

    name: str
    kind: type = int
    default: Any = REQUIRED


class Table(NamedTuple):
    """How the metadata of one architecture becomes a configuration.

    keys: fields of config.json by the key that holds them.
    constants: fields that every file of the architecture shares.
    expected: keys that change what is computed, and the value that leaves it as it is.
    unused: keys that say again what is known, or nothing that is computed.
    finish: makes the fields that depend on others.
    """

    model_type: str
    keys: Mapping[str, Key]
    constants: Mapping[str, Any] = {}
    expected: Mapping[str, Any] = {}
    unused: tuple[str, ...] = ()
    finish: Callable[["Metadata", Config], Config] = lambda metadata, config: config


class Metadata:
    """The keys of one architecture in a file; those that nobody reads are refused."""

    def __init__(self, tensors: Tensors, architecture: str):
        self.tensors, self.architecture = tensors, architecture
        self.read: set[str] = set()

    def error(self, key: str, expected: str, got: Any) -> HubError:
        where = f"{source(self.tensors)}: {self.architecture}.{key}"
        return HubError(f"{where}: expected {expected}, got {short(got)}")

    def get(self, key: str, kind: type = int, default: Any = REQUIRED) -> Any:
        """The value of a key; HubError unless it is there and of that kind."""
        self.read.add(key)
        name, metadata = f"{self.architecture}.{key}", self.tensors.metadata
        if name not in metadata and default is not REQUIRED:
            return default
        value = metadata[name] if name in metadata else None
        if type(value) not in ((int, float) if kind is float else (kind,)):
            raise self.error(key, f"a {kind.__name__}", value)
        return value * 1.0 if kind is float else value  # type: ignore[operator]

    def expect(self, key: str, wanted: Any) -> None:
        """HubError if the key is there and holds another value."""
        if self.get(key, type(wanted), wanted) != wanted:
            raise self.error(key, repr(wanted), self.get(key, type(wanted)))

    def finish(self) -> None:
        """HubError for keys that nobody read: they may change what is computed."""
        prefix = f"{self.architecture}."
        names = [n for n in self.tensors.metadata if n.startswith(prefix)]
        unread = [n for n in names if n.removeprefix(prefix) not in self.read]
        if unread:
            raise HubError(
                f"{source(self.tensors)}: keys whose meaning is not known here: "
                + ", ".join(map(short, unread[:8]))
            )

    def factors(self, name: str) -> list[float] | None:
        """The values of a tensor of rotary factors; None if there is none."""
        if name not in self.tensors:
            return None
        tensor = self.tensors[name]
        if len(tensor.shape) != 1 or tensor.shape[0] > 2**16:
            raise HubError(f"{tensor.file}: {name}: expected [n], got {tensor.shape}")
        return tensor.read().astype(np.float64).tolist()


def source(tensors: Tensors) -> str:
    """The file that tensors come from."""
    return next((tensor.file for tensor in tensors.values()), "GGUF")


def read_config(table: Table, metadata: Metadata) -> Config:
    """The configuration that a table makes of a file's metadata."""
    config = {field: metadata.get(*key) for field, key in table.keys.items()}
    config |= table.constants
    config["model_type"] = table.model_type
    embedding = metadata.tensors.get("token_embd.weight")
    if embedding is None or not embedding.shape:
        raise HubError(f"{source(metadata.tensors)}: token_embd.weight: missing")
    config["vocab_size"] = metadata.get("vocab_size", int, embedding.shape[0])
    # A file has no key for it: a tied head is simply not there.
    config["tie_word_embeddings"] = "output.weight" not in metadata.tensors
    for key, wanted in {**EXPECTED, **table.expected}.items():
        metadata.expect(key, wanted)
    metadata.read.update(UNUSED, table.unused)
    check_counts(config)
    config = table.finish(metadata, config)
    metadata.finish()
    return config


EXPECTED = {"attention.causal": True}
UNUSED = ("tensor_data_layout", "rope.scaling.finetuned")


def rotary(metadata: Metadata, config: Config) -> Config:
    """Adds how positions turn: how much of a head, and what stretches them."""
    width = config["head_dim"]
    if width is None:
        width, rest = divmod(config["hidden_size"], config["num_attention_heads"] or 1)
        if rest:
            raise metadata.error("attention.head_count", "a divisor", config)
    metadata.expect("attention.value_length", width)
    turning = metadata.get("rope.dimension_count", int, width)
    if turning != width:
        config = {**config, "partial_rotary_factor": turning / width}
    given = scaling(metadata, config)
    return {**config, "rope_scaling": given} if given else config


def scaling(metadata: Metadata, config: Config) -> Config | None:
    kind = metadata.get("rope.scaling.type", str, "none")
    length = config["max_position_embeddings"]
    short_set = metadata.factors("rope_factors_short.weight")
    long_set = metadata.factors("rope_factors_long.weight")
    both = metadata.factors("rope_freqs.weight")  # Llama 3.1's scaling, written out
    if kind in ("none", "longrope") and (both or (short_set and long_set)):
        return {
            "rope_type": "longrope",
            "short_factor": both or short_set,
            "long_factor": both or long_set,
            "attention_factor": metadata.get("rope.scaling.attn_factor", float, 1.0),
            "original_max_position_embeddings": metadata.get(
                "rope.scaling.original_context_length", int, length
            ),
        }
    match kind:
        case "none":
            return None
        case "linear":
            factor = metadata.get("rope.scaling.factor", float)
            return {"rope_type": "linear", "factor": factor}
        case "yarn":
            metadata.expect("rope.scaling.yarn_ext_factor", 1.0)
            return {
                "rope_type": "yarn",
                "factor": metadata.get("rope.scaling.factor", float),
                "original_max_position_embeddings": metadata.get(
                    "rope.scaling.original_context_length"
                ),
                "beta_fast": metadata.get("rope.scaling.yarn_beta_fast", float, 32.0),
                "beta_slow": metadata.get("rope.scaling.yarn_beta_slow", float, 1.0),
            }
    raise metadata.error("rope.scaling.type", "none, linear, yarn or longrope", kind)


def windows(metadata: Metadata, config: Config, period: int) -> Config:
    """Adds which layers have a window: all but every `period`th, or as the file says.

    (llama.cpp's `set_swa_pattern`.)
    """
    number, key = config["num_hidden_layers"], "attention.sliding_window_pattern"
    pattern = metadata.tensors.metadata.get(f"{metadata.architecture}.{key}")
    metadata.read.add(key)
    if isinstance(pattern, np.ndarray):
        local = [bool(one) for one in pattern.tolist()]
    else:
        period = metadata.get(key, int, period)
        local = [bool(period) and i % period < period - 1 for i in range(number)]
    if len(local) != number:
        raise metadata.error(key, f"{number} flags, one for each layer", len(local))
    if config["sliding_window"] is None:
        local = [False] * number
    names = ["sliding_attention" if one else "full_attention" for one in local]
    return {**config, "layer_types": names}
