"""ConvNeXt and ResNet beside `transformers`, on tiny checkpoints that it makes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import hub
from jaxdl.hub.families.family import family_of
from tests.hub.families.tiny import checkpoint, compare, round_trip, torch, transformers

CONVNEXT = {
    "hidden_sizes": [8, 12, 16], "depths": [2, 1, 2], "num_stages": 3, "patch_size": 3,
    "layer_scale_init_value": 0.5, "num_labels": 3,
}  # fmt: skip
# The stages' features are multiples of four where they are bottlenecks.
RESNETS = {
    "resnet, bottlenecks": {
        "embedding_size": 4, "hidden_sizes": [16, 24, 32, 48], "depths": [2, 1, 2, 1],
        "num_labels": 3,
    },
    "resnet, basic": {
        "embedding_size": 6, "hidden_sizes": [6, 8], "depths": [2, 2],
        "layer_type": "basic", "num_labels": 3,
    },
}  # fmt: skip


def make(folder, name):
    if name.startswith("resnet"):
        config = transformers.ResNetConfig(**RESNETS[name])
        kind = transformers.ResNetForImageClassification
    else:
        config = transformers.ConvNextConfig(**CONVNEXT)
        ending = "Model" if "backbone" in name else "ForImageClassification"
        kind = getattr(transformers, f"ConvNext{ending}")
    # Wide enough that one kind of gelu is told from another.
    return checkpoint(folder, kind, config, spread=0.1 if "resnet" in name else 0.3)


def pictures(side):
    images = np.random.default_rng(3).normal(size=(2, side, side, 3))
    images = images.astype(np.float32)
    return jnp.asarray(images), torch.tensor(images.transpose(0, 3, 1, 2))


def last_first(images):
    """Channels last, as ours are."""
    return images.permute(0, 2, 3, 1)


@pytest.mark.parametrize("name", ["convnext", "convnext, a backbone"])
def test_a_convnext_is_that_of_transformers(name, tmp_path):
    theirs = make(tmp_path, name)
    model, params, *_ = hub.load(tmp_path)
    ours, images = pictures(25)
    with torch.no_grad():
        expected = theirs(images, output_hidden_states=True)
    run = jax.jit(jd.capture(model, "stages/*/out"))
    result, taps = run(params, ours)
    outs = [taps[f"stages/{i}/out"] for i in range(3)]
    # The first of theirs is the stem.
    for out, other in zip(outs, expected.hidden_states[1:], strict=True):
        compare(out, last_first(other))
    if "backbone" in name:
        compare(result, last_first(expected.last_hidden_state))
        compare(model.pooled(params, result), expected.pooler_output)
    else:
        compare(result, expected.logits)
        eager = model(params, ours)
        np.testing.assert_allclose(eager, result, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RESNETS)
def test_a_resnet_is_that_of_transformers(name, tmp_path):
    theirs = make(tmp_path, name)
    model, params, _, _, state = hub.load(tmp_path)
    ours, images = pictures(40)
    with torch.no_grad():
        expected = theirs(images, output_hidden_states=True)
    run = jax.jit(jd.capture(model, "layer*/*/out"), static_argnames="train")
    (logits, after), taps = run(params, ours, state, train=False)
    for stage, other in enumerate(expected.hidden_states[1:], start=1):
        last = model.depths[stage - 1] - 1
        compare(taps[f"layer{stage}/{last}/out"], last_first(other))
    compare(logits, expected.logits)
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_statistics_stay_wide_and_are_not_left_out(tmp_path):
    make(tmp_path, "resnet, basic")
    opened = hub.load(tmp_path, dtype=jnp.bfloat16)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(opened.params)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(opened.state)} == {"float32"}
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    spread = hub.load(tmp_path, mesh, {"embed": "data"})
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(spread.state))
    jax.tree.map(np.testing.assert_array_equal, spread.state, opened.state)
    with pytest.raises(hub.HubError, match="state="):
        hub.save(tmp_path / "ours", opened.model, opened.params, opened.config)


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
        **RESNETS["resnet, basic"], name: value,
    }  # fmt: skip
    with pytest.raises(hub.HubError, match="resnet: expected"):
        family_of(config).build(config)


def test_a_convnext_needs_a_width_for_each_depth():
    with pytest.raises(ValueError, match="a width for each depth"):
        jd.models.ConvNeXt((1, 2), (8,))


@pytest.mark.parametrize("name", ["convnext", "resnet, bottlenecks"])
def test_what_is_saved_is_what_was_read(name, tmp_path):
    make(tmp_path / "theirs", name)
    round_trip(tmp_path / "theirs", tmp_path / "ours")
