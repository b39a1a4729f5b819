"""Text encoders beside `transformers`, on tiny checkpoints that it makes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import hub
from jaxdl.hub.families.family import family_of
from tests.hub.families.tiny import (
    BATCH,
    SEQ,
    Case,
    Difference,
    check_round_trip,
    compare,
    compare_states,
    published,
    states_of,
    tokens,
    torch,
)

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40,
    "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 24,
}  # fmt: skip
DISTIL = {
    "vocab_size": 61, "dim": 32, "hidden_dim": 40, "n_layers": 3, "n_heads": 4,
    "max_position_embeddings": 24,
}  # fmt: skip
MODERN = {
    **SIZES, "num_hidden_layers": 5, "pad_token_id": 0, "bos_token_id": 1,
    "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    },
}  # fmt: skip

BIASES = {
    "num_hidden_layers": 2, "norm_bias": True, "mlp_bias": True,
    "attention_bias": True, "classifier_bias": True, "decoder_bias": False,
    "classifier_activation": "relu",
}  # fmt: skip
ROBERTA = {"type_vocab_size": 1, "hidden_act": "relu"}

MASKED = "ForMaskedLM"
CASES = {
    "bert": Case("Bert" + MASKED, SIZES, says="norms of sums, token types, tied head"),
    "bert, another activation": Case("Bert" + MASKED, SIZES, {"hidden_act": "relu"}),
    "roberta": Case("Roberta" + MASKED, SIZES, ROBERTA, "positions of real tokens"),
    "xlm-roberta": Case("XLMRoberta" + MASKED, SIZES, {"pad_token_id": 2}),
    "distilbert": Case("DistilBert" + MASKED, DISTIL, says="no token types"),
    "modernbert": Case(
        "ModernBert" + MASKED, MODERN, {"local_attention": 6}, "two rotations, gated"
    ),
    "modernbert with biases": Case("ModernBert" + MASKED, MODERN, BIASES),
}
BERT = Case("BertModel", SIZES)


def padded(theirs, lengths=(SEQ, 7, 4)):
    """Rows of tokens that end in padding, and which of them are real."""
    real = np.arange(SEQ) < np.array(lengths)[:, None]
    ids = tokens(theirs.config.vocab_size, real.shape)
    return np.where(real, ids, theirs.config.pad_token_id), real


def packed(rows):
    """One more row, in which the texts of the last two follow each other."""
    return np.concatenate([rows, [[*rows[1, :7], *rows[2, :4]]]])


def check(case):
    """Holds ours to theirs: padded rows, and two of them packed in one."""
    _, theirs, (model, params, *_) = published(case)
    ids, real = padded(theirs)
    types, given = {}, {}
    if getattr(theirs.config, "type_vocab_size", 0) > 1:
        drawn = np.random.default_rng(1).integers(0, 2, ids.shape)
        types = {"token_type_ids": torch.tensor(drawn)}
        given = {"token_types": packed(drawn)}
    result, states = states_of(
        model, params, packed(ids), mask=packed(real),
        positions=packed(np.where(real, np.arange(SEQ), -1)),
        segment_ids=packed(np.full(ids.shape, [[0], [0], [1]])), **given,
    )  # fmt: skip
    with torch.no_grad():
        expected = theirs(
            torch.tensor(ids), attention_mask=torch.tensor(real.astype(int)),
            output_hidden_states=True, **types,
        )  # fmt: skip
    logits = expected.logits.numpy()
    compare(result[3], packed(logits)[3])
    worst = compare_states(
        [state[:3] for state in states], expected.hidden_states, real,
        model.config.final_norm,
    )  # fmt: skip
    return Difference(compare(result[:3][real], logits[real]), worst)


@pytest.mark.parametrize("name", CASES)
def test_an_encoder_is_that_of_transformers(name):
    check(CASES[name])


def test_a_sentence_is_the_mean_of_its_tokens_at_length_one():
    _, theirs, (model, params, *_) = published(BERT)
    ids, real = padded(theirs)
    with torch.no_grad():
        expected = theirs(
            torch.tensor(ids), attention_mask=torch.tensor(real.astype(int))
        )
        weights = torch.tensor(real)[..., None].float()
        mean = (expected.last_hidden_state * weights).sum(1) / weights.sum(1)
        mean = torch.nn.functional.normalize(mean)
    mask = jnp.asarray(real)
    states = jax.jit(model)(params, jnp.asarray(ids), mask=mask)
    compare(states[real], expected.last_hidden_state[torch.tensor(real)])
    compare(model.pooled(params, states), expected.pooler_output)
    compare(jax.jit(model.sentence)(params, jnp.asarray(ids), mask=mask), mean)


def test_an_encoder_without_a_mask_sees_every_token():
    # Not under jit: both give the same.
    _, theirs, (model, params, *_) = published(CASES["roberta"])
    ids, real = padded(theirs)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids[:1])).logits
        masked = theirs(
            torch.tensor(ids), attention_mask=torch.tensor(real.astype(int))
        ).logits
    compare(model(params, jnp.asarray(ids[:1])), expected)
    # Positions follow from the mask.
    logits = np.asarray(model(params, jnp.asarray(ids), mask=jnp.asarray(real)))
    compare(logits[real], masked.numpy()[real])


def test_older_names_of_norms_are_read(tmp_path):
    folder, _, (model, params, _, config, _) = published(CASES["bert"])
    from safetensors.numpy import load_file, save_file

    named = load_file(folder / "model.safetensors")
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in named.items()
    }
    save_file(older, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = hub.load(tmp_path)
    assert again.model == model
    jax.tree.map(np.testing.assert_array_equal, again.params, params)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"is_decoder": True}, "is_decoder=True"),
        ({"tie_word_embeddings": False}, "tied"),
    ],
)
def test_what_is_not_an_encoder_of_ours_is_refused(change, words):
    config = {**published(CASES["bert"]).ours.config, **change}
    with pytest.raises(hub.HubError, match=words):
        family_of(config).build(config)


def test_each_device_is_given_its_own_part():
    folder, _, whole = published(CASES["bert"])
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("model",))
    opened = hub.load(folder, mesh, {"mlp": "model"})
    kernel = opened.params["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, 32, 10)
    jax.tree.map(np.testing.assert_array_equal, opened.params, whole.params)


def test_an_older_modernbert_says_its_rotations_in_another_way():
    model, _, _, config, _ = published(CASES["modernbert"]).ours
    older = {
        k: v for k, v in config.items() if k not in ("rope_parameters", "layer_types")
    }
    older |= {"global_rope_theta": 500.0, "local_rope_theta": 50.0}
    older |= {"global_attn_every_n_layers": 3}
    assert family_of(older).build(older) == model
    with pytest.raises(hub.HubError, match="mlp_bias"):
        family_of(older).build({**older, "mlp_bias": True})


def test_an_encoder_without_a_head_says_so():
    config = jd.models.EncoderConfig(vocab_size=5, token_types=0)
    model = jd.models.Encoder(config)
    states = jnp.ones((BATCH, SEQ, 768))
    with pytest.raises(ValueError, match="masked_head"):
        jax.eval_shape(lambda: model.logits({"embed": {}}, states))
    with pytest.raises(ValueError, match="pooler"):
        jax.eval_shape(lambda: model.pooled({}, states))


@pytest.mark.parametrize("name", ["bert", "distilbert", "modernbert"])
def test_what_is_saved_is_what_was_read(name, tmp_path):
    check_round_trip(CASES[name], tmp_path)
