"""Rotary positions as published configurations describe them, old and new."""

from collections.abc import Mapping
import math
from typing import Any

from jaxdl.hub.files import HubError
from jaxdl.nn.rope import (
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    NTKScaling,
    RoPE,
    YarnScaling,
)


def rope(
    config: Mapping[str, Any],
    head_dim: int,
    *,
    kind: str | None = None,
    interleaved: bool = False,
) -> RoPE:
    """The RoPE of a configuration: `rope_parameters`, or rope_theta and rope_scaling.

    kind: which of several, where `rope_parameters` has one for each kind of layer.
    Raises HubError for a scaling that is not known.
    """
    given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if kind is not None and kind in given:
        given = dict(given[kind])
    theta = given.get("rope_theta", config.get("rope_theta", 10_000.0))
    partial = given.get(
        "partial_rotary_factor", config.get("partial_rotary_factor", 1.0)
    )
    rotary_dim = int(head_dim * partial)
    scaling = _scaling(config, given, rotary_dim)
    return RoPE(
        head_dim,
        float(theta),
        None if rotary_dim == head_dim else rotary_dim,
        scaling,
        interleaved,
    )


def _scaling(config: Mapping[str, Any], given: Mapping[str, Any], width: int) -> Any:
    kind = given.get("rope_type", given.get("type", "default"))
    length = given.get(
        "original_max_position_embeddings", config.get("max_position_embeddings")
    )
    match kind:
        case "default":
            return None
        case "linear":
            return LinearScaling(float(given["factor"]))
        case "dynamic":
            return NTKScaling(float(given["factor"]), config["max_position_embeddings"])
        case "llama3":
            return Llama3Scaling(
                float(given["factor"]),
                float(given["low_freq_factor"]),
                float(given["high_freq_factor"]),
                int(given["original_max_position_embeddings"]),
            )
        case "yarn":
            return _yarn(given, int(length))
        case "longrope" | "su":
            return _long(config, given, width)
    raise HubError(
        "rope_type: expected default, linear, dynamic, llama3, yarn or longrope, got "
        f"{kind!r}"
    )


def _yarn(given: Mapping[str, Any], length: int) -> YarnScaling:
    factor = float(given["factor"])
    magnitude = given.get("attention_factor")
    whole, part = given.get("mscale_all_dim"), given.get("mscale")
    if magnitude is None and whole and part:
        plain = YarnScaling(factor, length).magnitude - 1.0  # type: ignore[operator]
        magnitude = (part * plain + 1.0) / (whole * plain + 1.0)
    return YarnScaling(
        factor,
        length,
        float(given.get("beta_fast") or 32.0),
        float(given.get("beta_slow") or 1.0),
        magnitude,
        bool(given.get("truncate", True)),
    )


def _long(
    config: Mapping[str, Any], given: Mapping[str, Any], width: int
) -> LongScaling:
    # Phi-3's files have it beside the dict of the scaling.
    length = config.get("original_max_position_embeddings") or given.get(
        "original_max_position_embeddings", config["max_position_embeddings"]
    )
    factor = given.get("factor") or config["max_position_embeddings"] / length
    magnitude = given.get("attention_factor")
    if magnitude is None:
        longer = math.log(factor) / math.log(length) if factor > 1 else 0.0
        magnitude = math.sqrt(1.0 + longer)
    return LongScaling(
        _factors("short_factor", given, width),
        _factors("long_factor", given, width),
        int(length),
        float(magnitude),
    )


def _factors(name: str, given: Mapping[str, Any], width: int) -> tuple[float, ...]:
    found = given.get(name)
    if not isinstance(found, list | tuple) or len(found) != width // 2:
        got = len(found) if isinstance(found, list | tuple) else found
        raise HubError(f"{name}: expected {width // 2} factors, got {got!r}")
    return tuple(float(factor) for factor in found)
