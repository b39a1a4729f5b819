"""Tiny checkpoints made by `transformers`, and ours held to them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import hub

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BATCH, SEQ = 2, 11


def checkpoint(folder, model_class, config, seed=0, spread=0.08):
    """A seeded model of a configuration, every weight off its initial value.

    spread: how far the matrices are, as a standard deviation.
    """
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = model_class(config).eval()
    with torch.no_grad():
        for _, weight in model.named_parameters():
            # Norms and biases start at ones and zeros, which hide what they do.
            scale = 0.3 if weight.ndim == 1 else spread
            weight += scale * torch.randn(weight.shape)
        for name, buffer in model.named_buffers():
            if "running" in name:  # statistics of batches: 0 and 1 at first
                buffer += torch.rand(buffer.shape)
    model.save_pretrained(folder)
    return model


def tokens(vocab_size, shape=(BATCH, SEQ), seed=0):
    return np.random.default_rng(seed).integers(3, vocab_size, shape)


def compare(ours, theirs, tolerance=1e-4):
    """The largest difference; AssertionError if it is above the tolerance."""
    ours, theirs = np.asarray(ours, np.float32), theirs.detach().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    return float(np.abs(ours - theirs).max())


def resid(model, params, ids, **given):
    """Logits, and what leaves each layer, in the order of layers."""
    return states_of(model, params, jnp.asarray(ids), **given)


def states_of(model, params, x, stack="blocks", function=None, **given):
    """What a model (or its method) returns, and what leaves each layer of a stack."""
    names = f"{stack}/**/resid_post"
    function = function or model
    run = jax.jit(lambda p, x, given: jd.capture(function, names)(p, x, **given))
    result, values = run(params, x, given)
    for name in stack.split("/"):
        model = getattr(model, name)
    places = jd.nn.layers(model)
    paths = [f"{stack}/{path}/resid_post".replace("//", "/") for path, _ in places]
    stacked = {name: np.asarray(value) for name, value in values.items()}
    states = [stacked[p][n] for p, (_, n) in zip(paths, places, strict=True)]
    return result, states


def check_decoder(folder, theirs):
    """Holds ours to theirs: logits, hidden states, padding, packing, greedy tokens."""
    opened = hub.load(folder)
    model, params = opened.model, opened.params
    ids = tokens(theirs.config.vocab_size)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids), output_hidden_states=True)
    logits, states = resid(model, params, ids)
    worst = compare(logits, expected.logits)
    # The first of theirs is the embedding, but for Mamba, and the last is normalised.
    first = 0 if theirs.config.model_type == "mamba" else 1
    others = expected.hidden_states[first:-1]
    for ours, state in zip(states, others, strict=False):
        compare(ours, state)
    check_padding(model, params, theirs, ids)
    check_packing(model, params, logits, ids)
    check_greedy(model, params, theirs, ids)
    return worst


def check_padding(model, params, theirs, ids):
    padded = np.concatenate([np.zeros((BATCH, 3), ids.dtype), ids[:, :-1]], axis=1)
    mask = np.arange(padded.shape[1]) >= 3
    mask = np.broadcast_to(mask, padded.shape).astype(np.int64)
    positions = np.cumsum(mask, axis=1) - 1
    with torch.no_grad():
        expected = theirs(
            torch.tensor(padded),
            attention_mask=torch.tensor(mask),
            position_ids=torch.tensor(np.maximum(positions, 0)),
        ).logits
    ours = jax.jit(model)(params, jnp.asarray(padded), positions=jnp.asarray(positions))
    compare(ours[:, 3:], expected[:, 3:])


def check_packing(model, params, logits, ids):
    """Two sequences in one row are each as if alone."""
    first, second = ids[:1, :5], ids[1:, :4]
    packed = np.concatenate([first, second], axis=1)
    segments = np.array([[0] * 5 + [1] * 4])
    positions = np.array([[*range(5), *range(4)]])
    ours = jax.jit(model)(
        params, jnp.asarray(packed), segment_ids=jnp.asarray(segments),
        positions=jnp.asarray(positions),
    )  # fmt: skip
    close = dict(rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours[:, :5], logits[:1, :5], **close)
    np.testing.assert_allclose(ours[:, 5:], logits[1:, :4], **close)


def check_greedy(model, params, theirs, ids, new=8):
    """Prefill and decode through the cache choose the tokens that theirs chooses."""
    prompt = ids[:, :6]
    theirs.generation_config.eos_token_id = None  # so that neither stops
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor(prompt), max_new_tokens=new, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )[:, prompt.shape[1] :].numpy()  # fmt: skip
    step = jax.jit(lambda p, t, cache: model(p, t, cache=cache))
    cache = model.init_cache(BATCH, prompt.shape[1] + new, chunk=prompt.shape[1])
    logits, cache = step(params, jnp.asarray(prompt), cache)
    chosen = []
    for _ in range(new):
        token = logits[:, -1].argmax(-1)
        chosen.append(token)
        logits, cache = step(params, token[:, None], cache)
    np.testing.assert_array_equal(np.stack(chosen, axis=1), expected)


def round_trip(folder, again):
    """What is saved has the same bytes, and `transformers` reads the same model."""
    opened = hub.load(folder)
    hub.save(again, opened.model, opened.params, opened.config, state=opened.state)
    before, after = hub.open_tensors(folder), hub.open_tensors(again)
    counts = {name for name in before if name.endswith("num_batches_tracked")}
    assert set(before) - counts == set(after)
    for name in after:
        tensor = before[name]
        assert tensor.dtype == after[name].dtype
        np.testing.assert_array_equal(tensor.read(), after[name].read())
    assert json.loads((again / "config.json").read_text()) == opened.config
