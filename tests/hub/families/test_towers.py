"""Towers of CLIP and SigLIP alone, and DINOv2 with registers, beside `transformers`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import hub, models
from tests.hub.families.tiny import (
    Case,
    check_round_trip,
    compare,
    pictures,
    published,
    tokens,
    torch,
)

TEXT = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 16,
    "bos_token_id": 1, "eos_token_id": 7, "projection_dim": 20,
}  # fmt: skip
IMAGE = {
    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "image_size": 15, "patch_size": 5, "projection_dim": 20,
}  # fmt: skip
TEXTS = {
    "clip": Case("CLIPTextModel", TEXT),
    "clip, projected": Case("CLIPTextModelWithProjection", TEXT),
    "siglip": Case("SiglipTextModel", TEXT, {"projection_size": 28}),
}
IMAGES = {
    "clip": Case("CLIPVisionModel", IMAGE),
    "clip, projected": Case("CLIPVisionModelWithProjection", IMAGE),
    "siglip": Case("SiglipVisionModel", IMAGE),
}
REGISTERS = {"mlp_ratio": 2, "num_register_tokens": 3}
DINO = {
    "registers": Case("Dinov2WithRegistersModel", IMAGE, REGISTERS),
    "registers, a classifier": Case(
        "Dinov2WithRegistersForImageClassification", IMAGE,
        {**REGISTERS, "num_labels": 5, "use_swiglu_ffn": True},
    ),
    "no registers": Case("Dinov2Model", IMAGE, {"mlp_ratio": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_tower_is_that_of_transformers(name, tmp_path):
    _, theirs, (model, params, *_) = published(TEXTS[name])
    ids = tokens(61, (3, 8))
    ids[:, 5] = 7  # the end
    real = np.arange(8) < np.array([[8], [7], [6]])
    with torch.no_grad():
        mask = torch.tensor(real.astype(int))
        expected = theirs(torch.tensor(ids), attention_mask=mask)
    ids, mask = jnp.asarray(ids), jnp.asarray(real)
    vectors = jax.jit(model)(params, ids, mask=mask)
    compare(vectors, getattr(expected, "text_embeds", expected.get("pooler_output")))
    states = jax.jit(model.text.hidden)(params["text"], ids, mask=mask)
    compare(states[real], expected.last_hidden_state[torch.tensor(real)])
    check_round_trip(TEXTS[name], tmp_path)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_tower_is_that_of_transformers(name, tmp_path):
    _, theirs, (model, params, *_) = published(IMAGES[name])
    ours, images = pictures()
    with torch.no_grad():
        expected = theirs(images)
    vectors = jax.jit(model)(params, ours)
    compare(vectors, getattr(expected, "image_embeds", expected.get("pooler_output")))
    check_round_trip(IMAGES[name], tmp_path)


@pytest.mark.parametrize("name", DINO)
def test_dinov2_is_that_of_transformers_and_keeps_its_mask_token(name, tmp_path):
    _, theirs, (model, params, *_) = published(DINO[name])
    ours, images = pictures()
    with torch.no_grad():
        expected = theirs(images)
    result = jax.jit(model)(params, ours)
    if "classifier" in name:
        compare(result, expected.logits)
    else:
        compare(result, expected.last_hidden_state)
        compare(model.pooled(params, result), expected.pooler_output)
    check_round_trip(DINO[name], tmp_path)


@pytest.mark.parametrize("size", [(15, 15), (20, 35), (10, 15)])
def test_hidden_patches_and_other_sizes(size):
    _, theirs, (model, params, *_) = published(DINO["registers"])
    ours, images = pictures(*size)
    patches = size[0] // 5 * (size[1] // 5)
    hidden = np.random.default_rng(0).random((2, patches)) < 0.5
    with torch.no_grad():
        expected = theirs(images, bool_masked_pos=torch.tensor(hidden))
    run = jax.jit(lambda p, x, masked: model.hidden(p, x, masked=masked))
    compare(run(params, ours, jnp.asarray(hidden)), expected.last_hidden_state)


def test_what_a_model_lacks_is_refused():
    _, _, (model, params, *_) = published(IMAGES["clip"])
    ours, _ = pictures()
    masked = jnp.zeros((2, 9), bool)
    with pytest.raises(ValueError, match="a model with a mask_token"):
        model.image.hidden(params["image"], ours, masked=masked)
    _, _, (model, params, *_) = published(DINO["no registers"])
    with pytest.raises(ValueError, match=r"masked, bools \[2, 9\]"):
        model.hidden(params, ours, masked=masked[:, :4])
    text = models.Encoder(models.EncoderConfig())
    with pytest.raises(ValueError, match=r"TextTower\.pool: .*end with an end_token"):
        models.TextTower(text)


def test_a_siglip_without_its_head_is_refused():
    config = dict(published(IMAGES["siglip"]).ours.config)
    family = hub.families.family.family_of(config)
    with pytest.raises(hub.HubError, match="vision_use_head: expected True"):
        family.build({**config, "vision_use_head": False})
