"""Phi-3's two sets of rotary factors beside `transformers`, short and long."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import hub, nn
from jaxdl.hub.families.family import family_of
from tests.hub.families.tiny import (
    checkpoint,
    compare,
    round_trip,
    tokens,
    torch,
    transformers,
)

WIDTH, ORIGINAL = 8, 8
SHORT, LONG = [1.0, 1.3, 1.6, 2.0], [1.0, 2.0, 5.0, 9.0]
SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "original_max_position_embeddings": ORIGINAL,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 100.0, "short_factor": SHORT,
        "long_factor": LONG,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def phi3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phi3")
    config = transformers.Phi3Config(**SIZES)
    return folder, checkpoint(folder, transformers.Phi3ForCausalLM, config)


def declared(model, context):
    """The model for sequences of at most this many tokens."""

    def change(path, module):
        if not isinstance(module, nn.RoPE):
            return module
        scaling = dataclasses.replace(module.scaling, context=context)
        return dataclasses.replace(module, scaling=scaling)

    return jd.map_modules(change, model)


@pytest.mark.parametrize("length", [ORIGINAL, ORIGINAL + 1, ORIGINAL + 6])
def test_either_set_is_that_of_transformers(phi3, length):
    folder, theirs = phi3
    model, params, *_ = hub.load(folder)
    ids = tokens(61, (2, length))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits
    compare(jax.jit(model)(params, jnp.asarray(ids)), expected)
    fixed = declared(model, length)
    compare(jax.jit(fixed)(params, jnp.asarray(ids)), expected)
    # The other set shows.
    other = declared(model, 1 if length > ORIGINAL else ORIGINAL + 1)
    spread = np.abs(jax.jit(other)(params, jnp.asarray(ids)) - expected.numpy()).max()
    assert spread > 1e-3


def test_with_a_declared_context_a_cache_may_grow_beyond_the_original_length(phi3):
    folder, theirs = phi3
    model, params, *_ = hub.load(folder)
    model = declared(model, 2 * ORIGINAL)
    ids = tokens(61, (2, ORIGINAL + 4))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits
    step = jax.jit(lambda p, t, cache: model(p, t, cache=cache))
    cache, start = model.init_cache(2, ids.shape[1], chunk=6), 0
    for part in np.split(jnp.asarray(ids), [6], axis=1):
        logits, cache = step(params, part, cache)
        compare(logits, expected[:, start : start + part.shape[1]])
        start += part.shape[1]


def test_what_is_saved_is_what_was_read(phi3, tmp_path):
    round_trip(phi3[0], tmp_path / "ours")


def test_older_files_say_it_in_another_way(phi3):
    model, _, _, config, _ = hub.load(phi3[0])
    given = dict(config["rope_parameters"])
    older = {name: value for name, value in config.items() if name != "rope_parameters"}
    older["rope_theta"] = given.pop("rope_theta")
    factors = {name: given[name] for name in ("short_factor", "long_factor")}
    older["rope_scaling"] = {"type": "su", **factors}
    assert family_of(older).build(older) == model


@pytest.mark.parametrize("factors", [None, [1.0], "abcd", {}])
def test_factors_that_do_not_fit_are_refused(phi3, factors):
    config = hub.load(phi3[0]).config
    given = {**config["rope_parameters"], "long_factor": factors}
    with pytest.raises(hub.HubError, match="long_factor: expected 4 factors"):
        family_of(config).build({**config, "rope_parameters": given})
    with pytest.raises(ValueError, match=r"LongScaling\.long: expected 4 factors"):
        rope = nn.RoPE(WIDTH, scaling=nn.LongScaling(tuple(SHORT), (1.0,), ORIGINAL))
        rope({}, jnp.ones((1, 2, 1, WIDTH)), positions=jnp.arange(2))
