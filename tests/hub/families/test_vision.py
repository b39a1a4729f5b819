"""Vision transformers beside `transformers`, on tiny checkpoints that it makes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.models import ViTConfig
from jaxdl.models.contrastive import ContrastiveConfig
from jaxdl.models.encoder import EncoderConfig
from tests.hub.families.tiny import (
    Case,
    Difference,
    check_round_trip,
    compare,
    compare_states,
    pictures,
    published,
    states_of,
    tokens,
    torch,
)

SIZES = {
    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 4, "image_size": 15, "patch_size": 5,
}  # fmt: skip
TEXT = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 16,
    "bos_token_id": 1,
}  # fmt: skip
GATED = {"num_labels": 3, "use_swiglu_ffn": True, "layerscale_value": 0.5}
CLIP = {"vision_config": SIZES, "projection_dim": 20}
SIGLIP = {
    "vision_config": {**SIZES, "image_size": 17},
    "text_config": {**TEXT, "projection_size": 32},
}
VISION = {
    "vit": Case("ViTModel", SIZES, says="class token, learned positions, pooler"),
    "vit, a classifier": Case(
        "ViTForImageClassification", SIZES, {"num_labels": 3, "qkv_bias": False}
    ),
    "dinov2": Case("Dinov2Model", SIZES, {"mlp_ratio": 2}, "scaled layers"),
    "dinov2, a gated classifier": Case("Dinov2ForImageClassification", SIZES, GATED),
}
PAIRS = {
    "clip": Case(
        "CLIPModel", CLIP, {"text_config": {**TEXT, "eos_token_id": 7}},
        "the text's last token by its id",
    ),
    "clip, an older file": Case(
        "CLIPModel", CLIP, {"text_config": {**TEXT, "eos_token_id": 2}},
        "the text's last token by the highest id",
    ),
    "siglip": Case("SiglipModel", SIGLIP, says="pooled by attention, a bias of scores"),
}  # fmt: skip
CASES = {**VISION, **PAIRS}


def check(case):
    """Holds ours to theirs: one tower, or two and what they say of each other."""
    return check_pair(case) if case in PAIRS.values() else check_vision(case)


def check_vision(case):
    _, theirs, (model, params, *_) = published(case)
    ours, images = pictures()
    with torch.no_grad():
        expected = theirs(images, output_hidden_states=True)
    result, states = states_of(model, params, ours)
    worst = compare_states(states, expected.hidden_states)
    if hasattr(expected, "logits"):
        return Difference(compare(result, expected.logits), worst)
    compare(model.pooled(params, jnp.asarray(result)), expected.pooler_output)
    return Difference(compare(result, expected.last_hidden_state), worst)


def check_pair(case):
    _, theirs, (model, params, *_) = published(case)
    side = theirs.config.vision_config.image_size
    ours, images = pictures(side, side)
    ids = tokens(61, (3, 8))
    ids[:, 5] = [7, 60, 7]  # the end, and what is highest
    real = np.arange(8) < np.array([[8], [7], [6]])
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(ids), pixel_values=images,
            attention_mask=torch.tensor(real.astype(int)),
            output_hidden_states=True,
        )  # fmt: skip
    run = jax.jit(lambda p, ids, images, mask: model(p, ids, images, mask=mask))
    scores = compare(run(params, ids, ours, real), expected.logits_per_image)
    texts, states = states_of(
        model, params, ids, "text/blocks", model.encode_text, mask=real
    )
    compare(texts, expected.text_embeds)
    worst = compare_states(states, expected.text_model_output.hidden_states, real)
    seen, states = states_of(model, params, ours, "image/blocks", model.encode_image)
    compare(seen, expected.image_embeds)
    other = compare_states(states, expected.vision_model_output.hidden_states)
    return Difference(scores, max(worst, other))


@pytest.mark.parametrize("name", CASES)
def test_a_tower_or_two_are_those_of_transformers(name):
    check(CASES[name])


@pytest.mark.parametrize("size", [(20, 35), (10, 15), (17, 18)])
def test_positions_are_interpolated_for_other_sizes(size):
    _, theirs, (model, params, *_) = published(CASES["dinov2"])
    ours, images = pictures(*size)
    with torch.no_grad():
        expected = theirs(images)
    compare(jax.jit(model)(params, ours), expected.last_hidden_state)


def test_eager_is_jit():
    model, params, *_ = published(CASES["vit, a classifier"]).ours
    images, _ = pictures()
    jitted = jax.jit(model)(params, images)
    np.testing.assert_allclose(model(params, images), jitted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vit, a classifier", "clip", "siglip"])
def test_what_is_saved_is_what_was_read(name, tmp_path):
    check_round_trip(CASES[name], tmp_path)


def test_choices_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"ViTConfig\.pool"):
        ViTConfig(class_token=False)
    with pytest.raises(ValueError, match="end_token"):
        ContrastiveConfig(EncoderConfig(), ViTConfig(), 8)
