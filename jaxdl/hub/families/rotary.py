"""Rotary positions as published configurations describe them, old and new."""

from collections.abc import Mapping
from typing import Any

from jaxdl.hub.files import HubError
from jaxdl.nn.rope import (
    LinearScaling,
    Llama3Scaling,
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
    scaling = _scaling(config, given)
    rotary_dim = int(head_dim * partial)
    return RoPE(
        head_dim,
        float(theta),
        None if rotary_dim == head_dim else rotary_dim,
        scaling,
        interleaved,
    )


def _scaling(config: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
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
    raise HubError(
        f"rope_type: expected default, linear, dynamic, llama3 or yarn, got {kind!r}"
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
