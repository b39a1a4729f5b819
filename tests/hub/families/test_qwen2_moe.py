"""Qwen2-MoE: experts beside one that all tokens take, which has a gate of its own."""

import numpy as np

from tests.hub.families.tiny import (
    EXPERTS,
    SIZES,
    Case,
    check_round_trip,
    compare,
    published,
    states_of,
    tokens,
    torch,
)

CASE = Case(
    "Qwen2MoeForCausalLM",
    {**SIZES, **EXPERTS},
    {
        "num_experts": 5, "shared_expert_intermediate_size": 20,
        "mlp_only_layers": [1], "num_hidden_layers": 3, "norm_topk_prob": False,
    },
)  # fmt: skip


def test_it_is_that_of_transformers(tmp_path):
    _, theirs, (model, params, *_) = published(CASE)
    ids = tokens(61)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids), output_hidden_states=True)
    logits, states = states_of(model, params, np.asarray(ids))
    compare(logits, expected.logits)
    for ours, other in zip(states[:-1], expected.hidden_states[1:-1], strict=True):
        compare(ours, other)
    check_round_trip(CASE, tmp_path)
