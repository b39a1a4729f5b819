"""ConvNeXt and ResNet beside `transformers`, on tiny checkpoints that it makes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import hub
from jaxdl.hub.families.family import family_of
from tests.hub.families.tiny import (
    Case,
    Difference,
    check_round_trip,
    compare,
    compare_states,
    pictures,
    published,
    torch,
)

CONVNEXT = {
    "hidden_sizes": [8, 12, 16], "depths": [2, 1, 2], "num_stages": 3, "patch_size": 3,
    "layer_scale_init_value": 0.5, "num_labels": 3,
}  # fmt: skip
# The stages' features are multiples of four where they are bottlenecks.
BOTTLENECKS = {
    "embedding_size": 4, "hidden_sizes": [16, 24, 32, 48], "depths": [2, 1, 2, 1],
    "num_labels": 3,
}  # fmt: skip
BASIC = {
    "embedding_size": 6, "hidden_sizes": [6, 8], "depths": [2, 2],
    "layer_type": "basic", "num_labels": 3,
}  # fmt: skip
CONV, RES = "ConvNextForImageClassification", "ResNetForImageClassification"
CASES = {
    "convnext": Case(CONV, CONVNEXT, says="each channel for itself, scaled layers"),
    "convnext, a backbone": Case(
        "ConvNextModel", CONVNEXT, says="without a classifier"
    ),
    "resnet, bottlenecks": Case(RES, {}, BOTTLENECKS, spread=0.1),
    "resnet, basic": Case(RES, {}, BASIC, spread=0.1),
}


def check(case):
    """Holds ours to theirs: what each stage makes of two images, and the result."""
    _, theirs, (model, params, _, _, state) = published(case)
    ours, images = pictures(*((40, 40) if state else (25, 25)))
    with torch.no_grad():
        expected = theirs(images, output_hidden_states=True)
    if state:
        last = [f"layer{n}/{d - 1}/out" for n, d in enumerate(model.depths, start=1)]
        run = jax.jit(jd.capture(model, *last), static_argnames="train")
        (result, after), taps = run(params, ours, state, train=False)
        jax.tree.map(np.testing.assert_array_equal, after, state)
    else:
        last = [f"stages/{n}/out" for n in range(len(model.depths))]
        result, taps = jax.jit(jd.capture(model, *last))(params, ours)
    # The first of theirs is the stem.
    others = [channels_last(states) for states in expected.hidden_states]
    worst = compare_states([taps[name] for name in last], others)
    if hasattr(expected, "logits"):
        return Difference(compare(result, expected.logits), worst)
    compare(model.pooled(params, result), expected.pooler_output)
    whole = channels_last(expected.last_hidden_state)
    return Difference(compare(result, whole), worst)


def channels_last(images):
    """Images as ours are."""
    return images.permute(0, 2, 3, 1)


@pytest.mark.parametrize("name", CASES)
def test_a_convolutional_network_is_that_of_transformers(name):
    check(CASES[name])


def test_eager_is_jit():
    model, params, *_ = published(CASES["convnext"]).ours
    ours, _ = pictures(25, 25)
    eager = model(params, ours)
    np.testing.assert_allclose(
        eager, jax.jit(model)(params, ours), rtol=1e-4, atol=1e-5
    )


def test_statistics_stay_wide_and_are_not_left_out(tmp_path):
    folder = published(CASES["resnet, basic"]).folder
    opened = hub.load(folder, dtype=jnp.bfloat16)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(opened.params)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(opened.state)} == {"float32"}
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    spread = hub.load(folder, mesh, {"embed": "data"})
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(spread.state))
    jax.tree.map(np.testing.assert_array_equal, spread.state, opened.state)
    with pytest.raises(hub.HubError, match="state="):
        hub.save(tmp_path, opened.model, opened.params, opened.config)


@pytest.mark.parametrize(
    "name, value",
    [
        ("embedding_size", 5),
        ("downsample_in_bottleneck", True),
        ("hidden_act", "gelu"),
        ("architectures", ["ResNetModel"]),
    ],
)
def test_a_resnet_of_another_layout_is_refused(name, value):
    config = {
        "model_type": "resnet", "architectures": ["ResNetForImageClassification"],
        **BASIC, name: value,
    }  # fmt: skip
    with pytest.raises(hub.HubError, match="resnet: expected"):
        family_of(config).build(config)


def test_a_convnext_needs_a_width_for_each_depth():
    with pytest.raises(ValueError, match="a width for each depth"):
        jd.models.ConvNeXt((1, 2), (8,))


@pytest.mark.parametrize("name", ["convnext", "resnet, bottlenecks"])
def test_what_is_saved_is_what_was_read(name, tmp_path):
    check_round_trip(CASES[name], tmp_path)
