"""Vision transformers beside `transformers`, on tiny checkpoints that it makes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import hub
from jaxdl.models import ViTConfig
from jaxdl.models.contrastive import ContrastiveConfig
from jaxdl.models.encoder import EncoderConfig
from tests.hub.families.tiny import (
    checkpoint,
    compare,
    round_trip,
    states_of,
    tokens,
    torch,
    transformers,
)

# Wide enough that one kind of gelu, or one epsilon, is told from another.
SPREAD = 0.3
SIZES = {
    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 4, "image_size": 15, "patch_size": 5,
}  # fmt: skip
THREE = {"num_labels": 3}
FAMILIES = {
    "vit": ("ViT", "Model", SIZES),
    "vit, a classifier": (
        "ViT", "ForImageClassification", {**SIZES, **THREE, "qkv_bias": False}
    ),
    "dinov2": ("Dinov2", "Model", {**SIZES, "mlp_ratio": 2}),
    "dinov2, a gated classifier": (
        "Dinov2",
        "ForImageClassification",
        {**SIZES, **THREE, "use_swiglu_ffn": True, "layerscale_value": 0.5},
    ),
}  # fmt: skip
TEXT = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 16,
    "bos_token_id": 1,
}  # fmt: skip
PAIRS = {
    "clip": {"text_config": {**TEXT, "eos_token_id": 7}, "projection_dim": 20},
    "clip, an older file": {
        "text_config": {**TEXT, "eos_token_id": 2}, "projection_dim": 20
    },
    "siglip": {"text_config": {**TEXT, "projection_size": 32}},
}  # fmt: skip


def make(folder, name):
    family, kind, sizes = FAMILIES[name]
    config = getattr(transformers, f"{family}Config")(**sizes)
    return checkpoint(
        folder, getattr(transformers, family + kind), config, spread=SPREAD
    )


def make_pair(folder, name):
    family = "Siglip" if name == "siglip" else "CLIP"
    vision = {**SIZES, "image_size": 17} if name == "siglip" else SIZES
    config = getattr(transformers, f"{family}Config")(
        **PAIRS[name], vision_config=vision
    )
    return checkpoint(
        folder, getattr(transformers, f"{family}Model"), config, spread=SPREAD
    )


def pictures(height=15, width=15, number=2):
    """Images for ours, and as torch has them: channels first."""
    images = np.random.default_rng(3).normal(size=(number, height, width, 3))
    images = images.astype(np.float32)
    return jnp.asarray(images), torch.tensor(images.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_vision_transformer_is_that_of_transformers(name, tmp_path):
    theirs = make(tmp_path, name)
    model, params, *_ = hub.load(tmp_path)
    ours, images = pictures()
    with torch.no_grad():
        expected = theirs(images, output_hidden_states=True)
    result, states = states_of(model, params, ours)
    assert len(states) == len(expected.hidden_states) - 1
    for state, other in zip(states, expected.hidden_states[1:], strict=True):
        compare(state, other)
    if "classifier" in name:
        compare(result, expected.logits)
    else:
        compare(result, expected.last_hidden_state)
        compare(model.pooled(params, result), expected.pooler_output)


@pytest.mark.parametrize("size", [(20, 35), (10, 15), (17, 18)])
def test_positions_are_interpolated_for_other_sizes(size, tmp_path):
    theirs = make(tmp_path, "dinov2")
    model, params, *_ = hub.load(tmp_path)
    ours, images = pictures(*size)
    with torch.no_grad():
        expected = theirs(images)
    compare(jax.jit(model)(params, ours), expected.last_hidden_state)


@pytest.mark.parametrize("name", PAIRS)
def test_two_towers_are_those_of_transformers(name, tmp_path):
    theirs = make_pair(tmp_path, name)
    model, params, *_ = hub.load(tmp_path)
    ours, images = pictures(*theirs.config.vision_config.image_size * np.array([1, 1]))
    ids = tokens(61, (3, 8))
    ids[:, 5] = [7, 60, 7]  # the end, and what is highest
    real = np.arange(8) < np.array([[8], [7], [6]])
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(ids), pixel_values=images,
            attention_mask=torch.tensor(real.astype(int)),
            output_hidden_states=True,
        )  # fmt: skip
    mask, ids = jnp.asarray(real), jnp.asarray(ids)
    run = jax.jit(lambda p: model(p, ids, ours, mask=mask))
    compare(run(params), expected.logits_per_image)
    texts, states = states_of_tower(model, params, "text", ids, mask=mask)
    compare(texts, expected.text_embeds)
    for state, other in zip(
        states, expected.text_model_output.hidden_states[1:], strict=True
    ):
        compare(state[real], other[torch.tensor(real)])
    seen, states = states_of_tower(model, params, "image", ours)
    compare(seen, expected.image_embeds)
    for state, other in zip(
        states, expected.vision_model_output.hidden_states[1:], strict=True
    ):
        compare(state, other)


def states_of_tower(model, params, tower, x, **given):
    """What one tower makes of x, and what leaves each of its layers."""
    encode = getattr(model, f"encode_{tower}")
    return states_of(model, params, x, f"{tower}/blocks", encode, **given)


def test_eager_is_jit(tmp_path):
    make(tmp_path, "vit, a classifier")
    model, params, *_ = hub.load(tmp_path)
    images, _ = pictures()
    jitted = jax.jit(model)(params, images)
    np.testing.assert_allclose(model(params, images), jitted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vit, a classifier", "clip", "siglip"])
def test_what_is_saved_is_what_was_read(name, tmp_path):
    (make if name in FAMILIES else make_pair)(tmp_path / "theirs", name)
    round_trip(tmp_path / "theirs", tmp_path / "ours")


def test_choices_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"ViTConfig\.pool"):
        ViTConfig(class_token=False)
    with pytest.raises(ValueError, match="end_token"):
        ContrastiveConfig(EncoderConfig(), ViTConfig(), 8)
