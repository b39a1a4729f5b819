"""T5 and Whisper beside `transformers`, on tiny checkpoints that it makes."""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import generate, hub
from jaxdl.generate.prompts import right_padded
from jaxdl.hub.families.family import family_of
from tests.hub.families.tiny import (
    BATCH,
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

# Longer texts than max_distance. Weights are wide enough that what is written is not
# always the same word.
T5 = {
    "vocab_size": 61, "d_model": 32, "d_kv": 6, "d_ff": 40, "num_layers": 3,
    "num_decoder_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10, "decoder_start_token_id": 0,
    "initializer_factor": 0.05,
}  # fmt: skip
V1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
WHISPER = {
    "vocab_size": 61, "d_model": 32, "encoder_layers": 3, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 48, "num_mel_bins": 6, "max_source_positions": 10,
    "max_target_positions": 24, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1, "suppress_tokens": None,
    "begin_suppress_tokens": None,
}  # fmt: skip
KIND = "ForConditionalGeneration"
CASES = {
    "t5": Case("T5" + KIND, T5, says="one bias for all layers, relu", spread=0.2),
    "t5 1.1": Case("T5" + KIND, T5, V1_1, "logits as they are", spread=0.2),
    "mt5": Case("MT5" + KIND, T5, says="gated, logits as they are", spread=0.2),
    "umt5": Case("UMT5" + KIND, T5, says="gated, a bias for each layer", spread=0.2),
    "whisper": Case("Whisper" + KIND, WHISPER, says="convolutions, no bias of keys"),
}
NEW = 10


class Source(NamedTuple):
    """What an encoder reads: for ours and for theirs, and which of it is real."""

    ours: Any
    theirs: dict[str, Any]
    mask: Any = None

    @property
    def real(self):
        return ... if self.mask is None else self.mask


def source_of(theirs):
    """A source of two rows, of which the texts are of two lengths."""
    if theirs.config.model_type == "whisper":
        frames = np.random.default_rng(2).normal(size=(BATCH, 20, 6))
        frames = frames.astype(np.float32)
        given = {"input_features": torch.tensor(frames.transpose(0, 2, 1))}
        return Source(frames, given)
    first, second = tokens(61, (BATCH, 14))
    ids, mask = right_padded([first, second[:9]])
    given = {"input_ids": ids, "attention_mask": mask}
    given = {name: torch.tensor(rows).long() for name, rows in given.items()}
    return Source(ids, given, mask)


def check(case):
    """Holds ours to theirs: either half, and greedy tokens."""
    _, theirs, (model, params, *_) = published(case)
    source, out = source_of(theirs), tokens(61, (BATCH, 12), seed=1)
    with torch.no_grad():
        expected = theirs(
            **source.theirs, decoder_input_ids=torch.tensor(out),
            output_hidden_states=True,
        )  # fmt: skip
    given, memory_mask = {}, {}
    if source.mask is not None:
        given, memory_mask = {"mask": source.mask}, {"memory_mask": source.mask}
    memory, states = states_of(
        model, params, source.ours, "encoder/blocks", model.encode, **given
    )
    their_memory = expected.encoder_last_hidden_state.numpy()
    compare(memory[source.real], their_memory[source.real])
    worst = compare_states(states, expected.encoder_hidden_states, source.real, True)
    logits, states = states_of(
        model, params, out, "decoder/blocks", model.decode, memory=memory, **memory_mask
    )
    other = compare_states(states, expected.decoder_hidden_states, last_is_normed=True)
    check_greedy(model, params, theirs, source)
    return Difference(compare(logits, expected.logits), max(worst, other))


def check_greedy(model, params, theirs, source):
    """What is written after two tokens is what theirs writes."""
    starts = np.array([[0, 5], [0, 8]])
    theirs.generation_config.eos_token_id = None  # so that neither stops
    with torch.no_grad():
        expected = theirs.generate(
            **source.theirs, decoder_input_ids=torch.tensor(starts), do_sample=False,
            max_new_tokens=NEW, eos_token_id=None,
        )  # fmt: skip
    expected = expected[:, -NEW:].numpy()  # Whisper leaves out what it began with
    reading = generate.conditioned(model, params, source.ours, mask=source.mask)
    got = generate.generate(*reading, starts, max_new=NEW)
    np.testing.assert_array_equal(got.tokens, expected)
    assert len({tuple(row) for row in expected}) == BATCH


@pytest.mark.parametrize("name", CASES)
def test_an_encoder_decoder_is_that_of_transformers(name):
    check(CASES[name])


@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_eager_is_jit(name):
    _, theirs, (model, params, *_) = published(CASES[name])
    source, out = source_of(theirs), jnp.asarray(tokens(61, (BATCH, 12), seed=1))
    given = {} if source.mask is None else {"mask": jnp.asarray(source.mask)}
    with torch.no_grad():
        expected = theirs(**source.theirs, decoder_input_ids=torch.tensor(out.tolist()))
    compare(model(params, jnp.asarray(source.ours), out, **given), expected.logits)


def test_a_t5_may_have_an_output_layer_of_its_own(tmp_path):
    folder, theirs, opened = published(CASES["t5 1.1"])
    named = hub.open_tensors(folder)
    arrays = {name: tensor.read() for name, tensor in named.items()}
    head = np.random.default_rng(5).normal(size=(61, 32)).astype(np.float32)
    # As the files were published.
    config = {**opened.config, "tie_word_embeddings": False}
    del config["scale_decoder_outputs"]
    from safetensors.numpy import save_file

    save_file({**arrays, "lm_head.weight": head}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, params, *_ = hub.load(tmp_path)
    ids, out = tokens(61, (1, 5)), tokens(61, (1, 3), seed=1)
    with torch.no_grad():
        states = theirs(
            torch.tensor(ids), decoder_input_ids=torch.tensor(out),
            output_hidden_states=True,
        ).decoder_hidden_states[-1]  # fmt: skip
    logits = jax.jit(model)(params, jnp.asarray(ids), jnp.asarray(out))
    compare(logits, states @ torch.tensor(head).T)


def test_whisper_starts_with_the_waves_of_its_files():
    modeling = pytest.importorskip("transformers.models.whisper.modeling_whisper")
    encoder = jd.models.whisper.AudioEncoder(
        jd.models.TransformerConfig(dim=8, num_layers=1, num_heads=2), 3, 5
    )
    table = encoder.position.init(jax.random.key(0))["embedding"]
    compare(table, modeling.sinusoids(5, 8), 1e-6)


def test_a_model_that_scales_its_embedding_is_refused():
    config = {"model_type": "whisper", **WHISPER, "scale_embedding": True}
    with pytest.raises(hub.HubError, match="scale_embedding"):
        family_of(config).build(config)


@pytest.mark.parametrize("name", ["t5 1.1", "umt5", "whisper"])
def test_what_is_saved_is_what_was_read(name, tmp_path):
    check_round_trip(CASES[name], tmp_path)
