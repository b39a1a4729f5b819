import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import data, finetune, losses, models
from jaxdl.train import TrainState, make_step

CONFIG = models.DecoderConfig(
    13, 16, dim=16, num_layers=2, num_heads=2, positions="rope", norm="rms",
    gated=True, hidden=24, bias=False, tie_embeddings=False,
)  # fmt: skip
MODEL = models.Decoder(CONFIG)
PAIRS = [([3, 4, 5], [6, 7, 2]), ([4, 3], [8, 2]), ([5], [9, 10, 11, 2])]


def test_an_example_learns_the_answer_only():
    made = finetune.example([5, 6, 7], [8, 2])
    assert made["inputs"].tolist() == [5, 6, 7, 8]
    assert made["targets"].tolist() == [6, 7, 8, 2]
    assert made["weights"].tolist() == [0, 0, 1, 1]
    cut = finetune.example([5, 6, 7], [8, 2], seq_len=3)
    assert cut["targets"].tolist() == [6, 7, 8] and cut["weights"].tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match="got a prompt of 3 tokens"):
        finetune.example([5, 6, 7], [8, 2], seq_len=2)
    with pytest.raises(ValueError, match="expected a token of the answer"):
        finetune.example([5, 6], [])


def test_a_conversation_learns_the_turns_that_are_marked():
    turns = [([5, 6], False), ([7, 2], True), ([8], False), ([9, 2], True)]
    made = finetune.conversation(turns)
    assert made["targets"].tolist() == [6, 7, 2, 8, 9, 2]
    assert made["weights"].tolist() == [0, 1, 1, 0, 1, 1]
    whole = finetune.conversation([([5, 6], False), ([7, 2], True)])
    for name, array in finetune.example([5, 6], [7, 2]).items():
        np.testing.assert_array_equal(whole[name], array)
    with pytest.raises(ValueError, match="a token to learn"):
        finetune.conversation([([5, 6, 7], False), ([8], True)], seq_len=2)


def test_the_loss_of_packed_rows_is_that_of_the_examples_one_by_one(key):
    params = jax.tree.map(lambda leaf: 4.0 * leaf, MODEL.init(key))
    examples = [finetune.example(*pair) for pair in PAIRS]
    rows = data.pack(examples, 10)
    assert rows["segment_ids"].max() == 2
    loss_fn = jax.jit(finetune.supervised_loss(MODEL))
    loss, entries = loss_fn(params, rows, key)
    run, total = jax.jit(MODEL), 0.0
    for made in examples:
        logits = run(params, made["inputs"][None])[0]
        each = losses.token_cross_entropy(logits, jnp.asarray(made["targets"]))
        total += float(jnp.sum(each * made["weights"]))
    count = sum(len(answer) for _, answer in PAIRS)
    assert entries["weight"] == count
    assert float(loss) == pytest.approx(total / count, rel=1e-4)
    # What stands in prompts and empty places has no part in it but as input.
    nonsense = np.where(rows["weights"] == 0, -7, rows["targets"])
    again, _ = loss_fn(params, {**rows, "targets": nonsense}, key)
    assert float(again) == float(loss)


def test_a_decoder_learns_its_answers_by_lora(key):
    params = MODEL.init(key)
    rows = data.pack([finetune.example(*pair) for pair in PAIRS], 8)
    model, params = finetune.lora(MODEL, params, "**", 8, 32.0, key=key)
    trained, frozen = finetune.split(params)
    optimizer = optax.adam(2e-2)
    state = TrainState.create(trained, optimizer, key=key, model_state=frozen)
    loss_fn = finetune.with_frozen(finetune.supervised_loss(model))
    step = make_step(loss_fn, optimizer)
    for _ in range(100):
        state, metrics = step(state, rows)
    assert metrics["loss"] < 0.05 and metrics["weight"] == 9
    plain, merged = finetune.merge(
        model, finetune.join(state.params, state.model_state)
    )
    for prompt, answer in PAIRS:
        tokens = jnp.asarray([[*prompt, *answer[:-1]]])
        written = plain(merged, tokens)[0, len(prompt) - 1 :].argmax(-1)
        assert written.tolist() == answer
