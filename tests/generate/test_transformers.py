"""Greedy and beam search beside `transformers`' generate on tiny checkpoints."""

import numpy as np
import pytest

from jaxdl import generate, hub
from tests.hub.families.test_encoder_decoders import CASES, source_of
from tests.hub.families.tiny import checkpoint, published, torch, transformers

NEW = 7
SIZES = {
    "vocab_size": 29, "hidden_size": 32, "intermediate_size": 40,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": False, "head_dim": 12,
}  # fmt: skip
FAMILIES = {
    "Llama": {},
    "Gemma2": {
        "sliding_window": 4, "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 0.8, "final_logit_softcapping": 9.0,
    },
}  # fmt: skip
PROMPTS = [[5, 9, 3, 14, 8, 22], [7, 4], [11, 6, 28]]
EOS = [2, 13, 17]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """Ours and theirs, of one checkpoint."""
    folder = tmp_path_factory.mktemp(request.param)
    config = getattr(transformers, f"{request.param}Config")(
        **SIZES, **FAMILIES[request.param]
    )
    model = getattr(transformers, f"{request.param}ForCausalLM")
    theirs = checkpoint(folder, model, config, seed=3)
    # Sharper, so that the best are not all nearly as good.
    with torch.no_grad():
        theirs.lm_head.weight *= 3
    theirs.save_pretrained(folder)
    return hub.load(folder), theirs


def theirs_of(model, **given):
    """Their continuations, padded by 0; and the scores of beams."""
    width = max(map(len, PROMPTS))
    rows = [[0] * (width - len(row)) + row for row in PROMPTS]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in PROMPTS]
    with torch.no_grad():
        out = model.generate(
            torch.tensor(rows), attention_mask=torch.tensor(mask), do_sample=False,
            max_new_tokens=NEW, pad_token_id=0, eos_token_id=EOS,
            return_dict_in_generate=True, output_scores=True, **given,
        )  # fmt: skip
    tokens = np.zeros((len(out.sequences), NEW), int)
    tokens[:, : out.sequences.shape[1] - width] = out.sequences[:, width:].numpy()
    return tokens, getattr(out, "sequences_scores", None)


def without_padding(tokens, eos=EOS):
    """Rows up to the first eos: beams are filled up with one or another."""
    rows = []
    for row in np.asarray(tokens).tolist():
        ends = [n for n, token in enumerate(row) if token in eos]
        rows.append(row[: ends[0] + 1] if ends else row)
    return rows


def test_greedy(pair):
    ours, theirs = pair
    got = generate.generate(ours.model, ours.params, PROMPTS, max_new=NEW, eos=EOS)
    assert got.rows() == without_padding(theirs_of(theirs)[0])
    assert got.ended.any() and not got.ended.all()


def test_greedy_with_a_penalty(pair):
    ours, theirs = pair
    # Alone: theirs counts padding as said.
    sampler = generate.repetition_penalty(1.8)
    prompt = PROMPTS[:1]
    got = generate.generate(
        ours.model, ours.params, prompt, max_new=NEW, sampler=sampler, key=None
    )
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor(prompt), do_sample=False, max_new_tokens=NEW,
            repetition_penalty=1.8, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    assert got.rows()[0] == expected[0, len(prompt[0]) :].tolist()


@pytest.mark.parametrize(
    "length_penalty, early_stopping",
    [
        (1.0, False),
        (0.3, True),
        pytest.param(0.5, "never", marks=pytest.mark.slow),
        pytest.param(-1.0, False, marks=pytest.mark.slow),
    ],
)
def test_beam_search(pair, length_penalty, early_stopping):
    ours, theirs = pair
    got = generate.beam_search(
        ours.model, ours.params, PROMPTS, max_new=NEW, beams=3, eos=EOS,
        length_penalty=length_penalty, early_stopping=early_stopping,
    )  # fmt: skip
    expected, scores = theirs_of(
        theirs, num_beams=3, num_return_sequences=3, length_penalty=length_penalty,
        early_stopping=early_stopping,
    )  # fmt: skip
    assert without_padding(got.tokens.reshape(-1, NEW)) == without_padding(expected)
    np.testing.assert_allclose(got.scores.reshape(-1), scores, rtol=1e-4, atol=1e-4)
    assert len({*got.lengths.ravel().tolist()}) > 1  # some ended early


def test_beams_of_an_encoder_decoder():
    _, theirs, (model, params, *_) = published(CASES["t5 1.1"])
    source, eos = source_of(theirs), [5, 55]
    with torch.no_grad():
        out = theirs.generate(
            **source.theirs, do_sample=False, max_new_tokens=NEW, eos_token_id=eos,
            num_beams=3, num_return_sequences=3, return_dict_in_generate=True,
            output_scores=True, pad_token_id=0,
        )  # fmt: skip
    reading = generate.conditioned(model, params, source.ours, mask=source.mask)
    got = generate.beam_search(*reading, [[0]] * 2, max_new=NEW, beams=3, eos=eos)
    expected = without_padding(out.sequences[:, 1:], eos)
    assert without_padding(got.tokens.reshape(-1, NEW), eos) == expected
    scores = out.sequences_scores
    np.testing.assert_allclose(got.scores.reshape(-1), scores, rtol=1e-4, atol=1e-4)
    assert len({*map(len, expected)}) > 1  # some ended early
