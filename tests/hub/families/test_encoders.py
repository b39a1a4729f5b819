"""Text encoders beside `transformers`, on tiny checkpoints that it makes."""

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
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40,
    "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 24,
}  # fmt: skip
DISTIL = {
    "vocab_size": 61, "dim": 32, "hidden_dim": 40, "n_layers": 3, "n_heads": 4,
    "max_position_embeddings": 24,
}  # fmt: skip
MODERN = {
    **SIZES, "num_hidden_layers": 5, "local_attention": 6, "pad_token_id": 0,
    "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    },
}  # fmt: skip

FAMILIES = {
    "bert": ("Bert", SIZES),
    "bert, another activation": ("Bert", {**SIZES, "hidden_act": "relu"}),
    "roberta": ("Roberta", {**SIZES, "type_vocab_size": 1, "hidden_act": "relu"}),
    "xlm-roberta": ("XLMRoberta", {**SIZES, "pad_token_id": 2}),
    "distilbert": ("DistilBert", DISTIL),
    "modernbert": ("ModernBert", MODERN),
    "modernbert with biases": (
        "ModernBert",
        {
            **MODERN, "num_hidden_layers": 2, "norm_bias": True, "mlp_bias": True,
            "attention_bias": True, "classifier_bias": True, "decoder_bias": False,
            "classifier_activation": "relu",
        },
    ),
}  # fmt: skip


def make(folder, name, kind="ForMaskedLM"):
    family, sizes = FAMILIES[name]
    config = getattr(transformers, f"{family}Config")(**sizes)
    return checkpoint(
        folder, getattr(transformers, family + kind), config, spread=SPREAD
    )


def padded(theirs):
    """Tokens of which some are padding, and what transformers calls their mask."""
    ids = tokens(theirs.config.vocab_size)
    real = np.arange(SEQ) < np.array([[SEQ], [SEQ - 4]])
    return np.where(real, ids, theirs.config.pad_token_id), real


@pytest.mark.parametrize("name", FAMILIES)
def test_an_encoder_is_that_of_transformers(name, tmp_path):
    theirs = make(tmp_path, name)
    opened = hub.load(tmp_path)
    ids, real = padded(theirs)
    given, ours_given = {}, {}
    if getattr(theirs.config, "type_vocab_size", 0) > 1:
        types = np.random.default_rng(1).integers(0, 2, ids.shape)
        given = {"token_type_ids": torch.tensor(types)}
        ours_given = {"token_types": jnp.asarray(types)}
    with torch.no_grad():
        expected = theirs(
            torch.tensor(ids), attention_mask=torch.tensor(real.astype(int)),
            output_hidden_states=True, **given,
        )  # fmt: skip
    logits, states = states_of(
        opened.model, opened.params, jnp.asarray(ids), mask=jnp.asarray(real),
        **ours_given,
    )  # fmt: skip
    compare(logits[real], expected.logits[torch.tensor(real)])
    assert len(states) == len(expected.hidden_states) - 1
    last = opened.model.config.final_norm  # theirs is then normalised
    for ours, state in zip(
        states[: -1 if last else None], expected.hidden_states[1:], strict=not last
    ):
        compare(ours[real], state[torch.tensor(real)])


def test_a_sentence_is_the_mean_of_its_tokens_at_length_one(tmp_path):
    theirs = make(tmp_path, "bert", "Model")
    model, params, *_ = hub.load(tmp_path)
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


def test_an_encoder_without_a_mask_sees_every_token(tmp_path):
    theirs = make(tmp_path, "roberta")
    model, params, *_ = hub.load(tmp_path)
    ids = tokens(theirs.config.vocab_size)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits
    # Not under jit: both give the same.
    compare(model(params, jnp.asarray(ids)), expected)


def test_packed_texts_are_each_as_if_alone(tmp_path):
    make(tmp_path, "bert")
    model, params, *_ = hub.load(tmp_path)
    ids = jnp.asarray(tokens(61))
    run = jax.jit(model)
    alone = run(params, ids[:, :5])
    packed = jnp.concatenate([ids[:1, :5], ids[1:, :5]], axis=1)
    positions = jnp.asarray([[*range(5), *range(5)]])
    segments = jnp.asarray([[0] * 5 + [1] * 5])
    together = run(params, packed, segment_ids=segments, positions=positions)
    np.testing.assert_allclose(together[0, :5], alone[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(together[0, 5:], alone[1], rtol=1e-4, atol=1e-4)


def test_older_names_of_norms_are_read(tmp_path):
    make(tmp_path / "new", "bert")
    model, params, *_ = hub.load(tmp_path / "new")
    from safetensors.numpy import load_file, save_file

    named = load_file(tmp_path / "new" / "model.safetensors")
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in named.items()
    }
    (tmp_path / "old").mkdir()
    save_file(older, tmp_path / "old" / "model.safetensors")
    (tmp_path / "new" / "config.json").rename(tmp_path / "old" / "config.json")
    again = hub.load(tmp_path / "old")
    assert again.model == model
    jax.tree.map(np.testing.assert_array_equal, again.params, params)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"is_decoder": True}, "is_decoder=True"),
        ({"tie_word_embeddings": False}, "tied"),
    ],
)
def test_what_is_not_an_encoder_of_ours_is_refused(change, words, tmp_path):
    make(tmp_path, "bert")
    config = {**hub.load(tmp_path).config, **change}
    with pytest.raises(hub.HubError, match=words):
        family_of(config).build(config)


def test_each_device_is_given_its_own_part(tmp_path):
    make(tmp_path, "bert")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("model",))
    opened = hub.load(tmp_path, mesh, {"mlp": "model"})
    kernel = opened.params["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, 32, 10)
    whole = hub.load(tmp_path).params
    jax.tree.map(np.testing.assert_array_equal, opened.params, whole)


def test_an_older_modernbert_says_its_rotations_in_another_way(tmp_path):
    make(tmp_path, "modernbert")
    model, _, _, config, _ = hub.load(tmp_path)
    older = {
        k: v for k, v in config.items() if k not in ("rope_parameters", "layer_types")
    }
    older |= {"global_rope_theta": 500.0, "local_rope_theta": 50.0}
    older |= {"global_attn_every_n_layers": 3}
    assert family_of(older).build(older) == model
    with pytest.raises(hub.HubError, match="mlp_bias"):
        family_of(older).build({**older, "mlp_bias": True})


def test_an_encoder_without_a_head_says_so(tmp_path):
    config = jd.models.EncoderConfig(vocab_size=5, token_types=0)
    model = jd.models.Encoder(config)
    states = jnp.ones((BATCH, SEQ, 768))
    with pytest.raises(ValueError, match="masked_head"):
        jax.eval_shape(lambda: model.logits({"embed": {}}, states))
    with pytest.raises(ValueError, match="pooler"):
        jax.eval_shape(lambda: model.pooled({}, states))


@pytest.mark.parametrize("name", ["bert", "distilbert", "modernbert"])
def test_what_is_saved_is_what_was_read(name, tmp_path):
    make(tmp_path / "theirs", name)
    round_trip(tmp_path / "theirs", tmp_path / "ours")
