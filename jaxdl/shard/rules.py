"""Presets of rules: plain dicts from logical axes to mesh axes, merged with `|`.

`FSDP | TENSOR` is one, `{**FSDP, "vocab": None}` changes one, and a prefix makes a rule
that is for one kind of array alone; see `Layout`. A mesh that lacks an axis, or has it
with size 1, ignores what rules say of it: so one set of rules serves many meshes.
"""

from jaxdl.core.layout import Rules as Rules

DATA: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp", "expert"),
}
"""The batch is split, parameters are whole on every device."""

ZERO1 = {**DATA, "optimizer/embed": ("data", "fsdp")}
"""`DATA` with the optimizer's state split (ZeRO, arXiv:1910.02054, section 5.1)."""

FSDP = {**DATA, "embed": "fsdp"}
"""Parameters and optimizer state split by `embed` (ZeRO-3, section 5.3 there)."""

TENSOR = {"heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}
"""Each layer split inside (Megatron, arXiv:1909.08053); merge with others."""

SEQUENCE = {"sequence": "sequence"}
"""Activations split along the sequence; merge with others."""

EXPERT = {"expert": "expert"}
"""Experts on devices of their own; merge with others."""

FSDP_TENSOR = FSDP | TENSOR
"""`FSDP` between groups of devices, `TENSOR` within each."""

CONTEXT = {**SEQUENCE, "key_sequence": "sequence"}
"""`SEQUENCE` with the keys split too: for `ring_attention` and its like."""
