"""Rules made into pieces: stacks, tables of layers, fused tensors, errors."""

import jax
import numpy as np
import pytest

from jaxdl.hub import HubError, Rule, load_params, of_arrays, transpose
from jaxdl.hub.mapping import plan


def leaf(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


def places(pieces):
    return {piece.name: (piece.path, *piece.index) for piece in pieces}


def test_a_placeholder_that_only_the_name_has_is_a_stacked_axis():
    rules = [Rule("h.{layer}.w", "blocks/w"), Rule("e", "embed")]
    pieces = plan(rules, {"blocks": {"w": leaf(2, 3)}, "embed": leaf(5)})
    assert places(pieces) == {
        "h.0.w": ("blocks/w", 0),
        "h.1.w": ("blocks/w", 1),
        "e": ("embed",),
    }
    assert pieces[0].shape == (3,)


def test_experts_are_a_second_stacked_axis():
    rules = [Rule("h.{layer}.experts.{expert}.w1", "moe/up")]
    pieces = plan(rules, {"moe": {"up": leaf(2, 3, 4, 5)}})
    assert places(pieces)["h.1.experts.2.w1"] == ("moe/up", 1, 2)
    assert len(pieces) == 6


def test_a_placeholder_in_the_path_is_a_part_of_it():
    rules = [Rule("layer{stage}.{block}.w", "stages/{stage}/{block}/w")]
    params = {"stages": {"1": {"0": {"w": leaf(2)}, "1": {"w": leaf(2)}}, "12": {}}}
    assert places(plan(rules, params)) == {
        "layer1.0.w": ("stages/1/0/w",),
        "layer1.1.w": ("stages/1/1/w",),
    }


def test_a_table_says_where_each_layer_is():
    layers = [("0/0", 0), ("0/1", 0), ("0/0", 1), ("0/1", 1), ("1", None)]
    rules = [
        Rule("h.{layer}.w", "blocks/{layer}/w"),
        Rule("h.{layer}.experts.{expert}.w", "blocks/{layer}/experts"),
    ]
    blocks = {
        "0": {"0": {"w": leaf(2, 3)}, "1": {"w": leaf(2, 3)}},
        "1": {"w": leaf(3), "experts": leaf(2, 7)},
    }
    assert places(plan(rules, {"blocks": blocks}, layers)) == {
        "h.0.w": ("blocks/0/0/w", 0),
        "h.1.w": ("blocks/0/1/w", 0),
        "h.2.w": ("blocks/0/0/w", 1),
        "h.3.w": ("blocks/0/1/w", 1),
        "h.4.w": ("blocks/1/w",),
        "h.4.experts.0.w": ("blocks/1/experts", 0),
        "h.4.experts.1.w": ("blocks/1/experts", 1),
    }


def test_the_table_of_one_stack_has_empty_paths():
    rules = [Rule("h.{layer}.w", "blocks/{layer}/w")]
    pieces = plan(rules, {"blocks": {"w": leaf(2, 3)}}, [("", 0), ("", 1)])
    assert places(pieces) == {"h.0.w": ("blocks/w", 0), "h.1.w": ("blocks/w", 1)}


def test_each_stack_may_have_a_table_of_its_own():
    rules = [Rule("enc.{e}.w", "encoder/{e}/w"), Rule("dec.{d}.w", "decoder/{d}/w")]
    params = {"encoder": {"w": leaf(2, 1)}, "decoder": {"a": {"w": leaf(1)}}}
    layers = {"e": [("", 1), ("", 0)], "d": [("a", None)]}
    assert places(plan(rules, params, layers)) == {
        "enc.0.w": ("encoder/w", 1),
        "enc.1.w": ("encoder/w", 0),
        "dec.0.w": ("decoder/a/w",),
    }


def test_rules_for_what_the_model_lacks_are_left_out():
    rules = [Rule("w", "kernel"), Rule("b", "bias")]
    assert places(plan(rules, {"kernel": leaf(2)})) == {"w": ("kernel",)}


@pytest.mark.parametrize("groups", [1, 2])
def test_a_fused_tensor_is_split_by_the_sizes_of_its_parts(groups):
    q, k = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    k = k[:, :4]
    turns = [
        part
        for g in range(groups)
        for part in (np.split(q.T, groups)[g], np.split(k.T, groups)[g])
    ]
    rule = Rule("qk.weight", ("q", "k"), transpose, groups=groups)
    params = load_params(
        of_arrays({"qk.weight": np.concatenate(turns)}),
        [rule],
        {"q": leaf(3, 8), "k": leaf(3, 4)},
    )
    np.testing.assert_array_equal(params["q"], q)
    np.testing.assert_array_equal(params["k"], k)


def test_a_fused_tensor_may_be_split_along_any_axis():
    both = np.arange(12.0, dtype=np.float32).reshape(2, 6)
    rule = Rule("c_attn", ("q", "k"), axis=-1)
    params = load_params(
        of_arrays({"c_attn": both}), [rule], {"q": leaf(2, 4), "k": leaf(2, 2)}
    )
    np.testing.assert_array_equal(params["k"], both[:, 4:])


def test_what_no_rule_fills_is_named():
    rules = [Rule("a", "a"), Rule("h.{layer}", "blocks/{layer}/w")]
    params = {"a": leaf(1), "b": leaf(2), "blocks": {"w": leaf(3)}, "none": leaf(0)}
    with pytest.raises(HubError) as caught:
        plan(rules, params, [("", 0), ("", 1)])
    assert "b: no rule says where it is published" in str(caught.value)
    assert "blocks/w: rules fill 2 of its 3 layers" in str(caught.value)


def test_two_tensors_for_one_place_are_refused():
    with pytest.raises(HubError, match="a: two tensors for it, x and y"):
        plan([Rule("x", "a"), Rule("y", "a")], {"a": leaf(1)})


def test_rules_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="expected the placeholders of 'w', got layer"):
        Rule("w", "blocks/{layer}/w")
    with pytest.raises(HubError, match="qk holds k too, which the model does not have"):
        plan([Rule("qk", ("q", "k"))], {"q": leaf(2)})
    with pytest.raises(HubError, match="do not split into 3 groups"):
        plan([Rule("qk", ("q", "k"), groups=3)], {"q": leaf(2), "k": leaf(2)})
    with pytest.raises(HubError, match="stacks 1 axes"):
        plan([Rule("h.{layer}", "a")], {"a": leaf()})
