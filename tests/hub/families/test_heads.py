"""Classifiers of texts and of tokens beside `transformers`, on tiny checkpoints."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import hub, models
from tests.hub.families.tiny import (
    BATCH,
    SEQ,
    Case,
    check_round_trip,
    compare,
    published,
    tokens,
    torch,
)

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 24,
    "num_labels": 5,
}  # fmt: skip
DISTIL = {
    "vocab_size": 61, "dim": 32, "hidden_dim": 40, "n_layers": 2, "n_heads": 4,
    "max_position_embeddings": 24, "num_labels": 5,
}  # fmt: skip
MODERN = {
    **SIZES, "local_attention": 6, "pad_token_id": 0, "bos_token_id": 1,
    "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2,
}  # fmt: skip
MEAN = {"classifier_pooling": "mean", "classifier_activation": "relu"}
TEXTS, WORDS = "ForSequenceClassification", "ForTokenClassification"
CASES = {
    "bert, texts": Case(f"Bert{TEXTS}", SIZES),
    "bert, tokens": Case(f"Bert{WORDS}", SIZES),
    "roberta, texts": Case(f"Roberta{TEXTS}", SIZES, {"num_labels": 1}),
    "roberta, tokens": Case(f"Roberta{WORDS}", SIZES),
    "distilbert, texts": Case(f"DistilBert{TEXTS}", DISTIL),
    "distilbert, tokens": Case(f"DistilBert{WORDS}", DISTIL),
    "modernbert, texts": Case(f"ModernBert{TEXTS}", MODERN),
    "modernbert, the mean": Case(
        f"ModernBert{TEXTS}", MODERN, {**MEAN, "classifier_bias": True}
    ),
    "modernbert, tokens": Case(f"ModernBert{WORDS}", MODERN),
}  # fmt: skip


SLOW = {"roberta, tokens", "distilbert, tokens", "modernbert, texts"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES],
)
def test_a_classifier_is_that_of_transformers(name, tmp_path):
    case = CASES[name]
    _, theirs, (model, params, *_) = published(case)
    real = np.arange(SEQ) < np.array([[SEQ], [SEQ - 4]])
    ids = np.where(real, tokens(61), theirs.config.pad_token_id)
    with torch.no_grad():
        mask = torch.tensor(real.astype(int))
        expected = theirs(torch.tensor(ids), attention_mask=mask).logits
    logits = jax.jit(model)(params, jnp.asarray(ids), mask=jnp.asarray(real))
    if case.kind.endswith(WORDS):
        compare(logits[real], expected[torch.tensor(real)])
    else:
        assert logits.shape == (BATCH, theirs.config.num_labels)
        compare(logits, expected)
    check_round_trip(case, tmp_path)


def test_a_mean_without_a_mask_is_that_of_every_token():
    _, theirs, (model, params, *_) = published(CASES["modernbert, the mean"])
    ids = tokens(61)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits
    compare(jax.jit(model)(params, jnp.asarray(ids)), expected)


def test_states_are_there_beside_a_classifier():
    _, theirs, (model, params, *_) = published(CASES["distilbert, texts"])
    ids = tokens(61)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids), output_hidden_states=True)
    hidden = jax.jit(model.hidden)(params, jnp.asarray(ids))
    compare(hidden, expected.hidden_states[-1])


def test_what_cannot_be_is_refused():
    head = models.MaskedHead(8, 5)
    classifier = models.Classifier(8, 3)
    with pytest.raises(ValueError, match="masked_head or a classifier, got both"):
        models.EncoderConfig(masked_head=head, classifier=classifier)
    with pytest.raises(ValueError, match=r"Classifier\.pool: expected first, mean"):
        models.Classifier(8, 3, pool="last")  # type: ignore[arg-type]


def test_another_pooling_is_refused(tmp_path):
    folder = published(CASES["modernbert, texts"]).folder
    config = json.loads((folder / "config.json").read_text())
    config["classifier_pooling"] = "max"
    with pytest.raises(hub.HubError, match="classifier_pooling: expected cls or mean"):
        hub.families.family.family_of(config).build(config)
