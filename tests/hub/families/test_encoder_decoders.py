"""T5 and Whisper beside `transformers`, on tiny checkpoints that it makes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import generate, hub
from tests.hub.families.tiny import (
    BATCH,
    checkpoint,
    compare,
    round_trip,
    states_of,
    tokens,
    torch,
    transformers,
)

# Weights are wide enough that one kind of gelu, or one epsilon, is told from another,
# and that what is written is not always the same word.
T5 = {
    "vocab_size": 61, "d_model": 32, "d_kv": 6, "d_ff": 40, "num_layers": 3,
    "num_decoder_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10, "decoder_start_token_id": 0,
    "initializer_factor": 0.05,
}  # fmt: skip
FAMILIES = {
    "t5": T5,
    "t5 1.1": {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}
WHISPER = {
    "vocab_size": 61, "d_model": 32, "encoder_layers": 3, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 48, "num_mel_bins": 6, "max_source_positions": 10,
    "max_target_positions": 24, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
NEW = 10


def make_t5(folder, name):
    config = transformers.T5Config(**FAMILIES[name])
    return checkpoint(
        folder, transformers.T5ForConditionalGeneration, config, spread=0.2
    )


def make_whisper(folder):
    config = transformers.WhisperConfig(**WHISPER)
    config.suppress_tokens = config.begin_suppress_tokens = None
    return checkpoint(
        folder, transformers.WhisperForConditionalGeneration, config, spread=0.3
    )


def compare_states(ours, theirs, real=None):
    """All but the last: theirs is then normalised."""
    assert len(ours) == len(theirs) - 1
    for mine, other in zip(ours[:-1], theirs[1:-1], strict=True):
        if real is not None:
            mine, other = mine[real], other[torch.tensor(real)]
        compare(mine, other)


def greedy(model, params, source, first, **given):
    """What the model writes after these starts."""
    reading = generate.conditioned(model, params, source, **given)
    return generate.generate(*reading, first, max_new=NEW).tokens


@pytest.mark.parametrize("name", FAMILIES)
def test_a_t5_is_that_of_transformers(name, tmp_path):
    theirs = make_t5(tmp_path, name)
    model, params, *_ = hub.load(tmp_path)
    # Longer than max_distance, and with padding.
    ids, out = tokens(61, (BATCH, 14)), tokens(61, (BATCH, 12), seed=1)
    real = np.arange(14) < np.array([[14], [9]])
    mask = torch.tensor(real.astype(int))
    with torch.no_grad():
        expected = theirs(
            torch.tensor(ids), attention_mask=mask,
            decoder_input_ids=torch.tensor(out), output_hidden_states=True,
        )  # fmt: skip
    ids, out, ours = jnp.asarray(ids), jnp.asarray(out), jnp.asarray(real)
    stack = "encoder/blocks"
    memory, states = states_of(model, params, ids, stack, model.encode, mask=ours)
    compare(memory[real], expected.encoder_last_hidden_state[torch.tensor(real)])
    compare_states(states, expected.encoder_hidden_states, real)
    logits, states = states_of(
        model, params, out, "decoder/blocks", model.decode, memory=memory,
        memory_mask=ours,
    )  # fmt: skip
    compare(logits, expected.logits)
    compare_states(states, expected.decoder_hidden_states)
    if name == "t5":
        whole = model(params, ids, out, mask=ours)  # not under jit
        np.testing.assert_allclose(whole, logits, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        written = theirs.generate(
            torch.tensor(np.asarray(ids)), attention_mask=mask, max_new_tokens=NEW + 1,
            decoder_input_ids=torch.tensor([[0, 5]] * BATCH), do_sample=False,
            eos_token_id=None,
        )  # fmt: skip
    chosen = greedy(model, params, ids, np.array([[0, 5]] * BATCH), mask=ours)
    np.testing.assert_array_equal(chosen, written[:, 2 : 2 + NEW].numpy())


def test_a_t5_may_have_an_output_layer_of_its_own(tmp_path):
    theirs = make_t5(tmp_path, "t5 1.1")
    named = hub.open_tensors(tmp_path)
    arrays = {name: tensor.read() for name, tensor in named.items()}
    head = np.random.default_rng(5).normal(size=(61, 32)).astype(np.float32)
    config = json.loads((tmp_path / "config.json").read_text())
    # As the files were published.
    config["tie_word_embeddings"] = False
    del config["scale_decoder_outputs"]
    (tmp_path / "model.safetensors").unlink()
    from safetensors.numpy import save_file

    save_file({**arrays, "lm_head.weight": head}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, params, *_ = hub.load(tmp_path)
    ids, out = tokens(61, (1, 5)), tokens(61, (1, 3), seed=1)
    with torch.no_grad():
        expected = theirs.model if hasattr(theirs, "model") else theirs
        states = expected(
            torch.tensor(ids), decoder_input_ids=torch.tensor(out),
            output_hidden_states=True,
        ).decoder_hidden_states[-1]  # fmt: skip
    logits = jax.jit(model)(params, jnp.asarray(ids), jnp.asarray(out))
    compare(logits, states @ torch.tensor(head).T)


def test_a_whisper_is_that_of_transformers(tmp_path):
    theirs = make_whisper(tmp_path)
    model, params, *_ = hub.load(tmp_path)
    frames = np.random.default_rng(2).normal(size=(BATCH, 20, 6)).astype(np.float32)
    features = torch.tensor(frames.transpose(0, 2, 1))
    out = tokens(61, (BATCH, 9))
    with torch.no_grad():
        expected = theirs(
            features, decoder_input_ids=torch.tensor(out), output_hidden_states=True
        )
    frames, stack = jnp.asarray(frames), "encoder/blocks"
    memory, states = states_of(model, params, frames, stack, model.encode)
    compare(memory, expected.encoder_last_hidden_state)
    compare_states(states, expected.encoder_hidden_states)
    logits, states = states_of(
        model, params, jnp.asarray(out), "decoder/blocks", model.decode, memory=memory
    )
    compare(logits, expected.logits)
    compare_states(states, expected.decoder_hidden_states)
    whole = model(params, frames, jnp.asarray(out))  # not under jit
    np.testing.assert_allclose(whole, logits, rtol=1e-4, atol=1e-4)
    first = np.array([[1, 5]] * BATCH)
    chosen = greedy(model, params, frames, first)
    with torch.no_grad():
        written = torch.tensor(first)
        for _ in range(NEW):
            scores = theirs(features, decoder_input_ids=written).logits[:, -1]
            written = torch.cat([written, scores.argmax(-1)[:, None]], dim=1)
    np.testing.assert_array_equal(chosen, written[:, 2:].numpy())


def test_whisper_starts_with_the_waves_of_its_files():
    import jaxdl as jd

    modeling = pytest.importorskip("transformers.models.whisper.modeling_whisper")
    encoder = jd.models.whisper.AudioEncoder(
        jd.models.TransformerConfig(dim=8, num_layers=1, num_heads=2), 3, 5
    )
    table = encoder.position.init(jax.random.key(0))["embedding"]
    compare(table, modeling.sinusoids(5, 8), 1e-6)


def test_a_model_that_scales_its_embedding_is_refused(tmp_path):
    from jaxdl.hub.families.whisper import build

    with pytest.raises(hub.HubError, match="scale_embedding"):
        build({**WHISPER, "scale_embedding": True})


@pytest.mark.parametrize("name", ["t5 1.1", "whisper"])
def test_what_is_saved_is_what_was_read(name, tmp_path):
    if name == "whisper":
        make_whisper(tmp_path / "theirs")
    else:
        make_t5(tmp_path / "theirs", name)
    round_trip(tmp_path / "theirs", tmp_path / "ours")
