import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdl as jd
from jaxdl import finetune, losses, models, nn
from jaxdl.core import tree
from jaxdl.testing import check_module
from jaxdl.train import TrainState, make_step

rng = np.random.default_rng(0)
x = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
KINDS = [finetune.lora, finetune.dora]

CONFIG = models.DecoderConfig(
    11, 16, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, positions="rope",
    norm="rms", gated=True, hidden=24, bias=False, tie_embeddings=False,
)  # fmt: skip
TOKENS = jnp.asarray(rng.integers(0, 11, (2, 8)))


@functools.partial(jax.jit, static_argnums=0)
def run(model, params):
    """Logits, and the same from the two halves of the model."""
    halves = model.hidden(params, TOKENS) @ model.head_kernel(params)
    return model(params, TOKENS), halves


def moved(params, seed=0):
    """Params with every adapter off its initial value, where B is 0."""
    rng = np.random.default_rng(seed)

    def move(path, leaf):
        if not tree.matches(finetune.ADAPTERS, path):
            return leaf
        return leaf + 0.1 * jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)

    return tree.map_with_path(move, params)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Repeat(finetune.LoRA(nn.Linear(4, 4), rank=2), 3),
        nn.Repeat(finetune.DoRA(nn.Linear(4, 4), rank=2), 3),
        nn.Sequential([finetune.LoRA(nn.Linear(4, 5, bias=False), 2, 3.0, 0.5)]),
        nn.Sequential([finetune.DoRA(nn.Linear(4, 5, bias=False), 2, 3.0, 0.5)]),
    ],
)
def test_adapters_keep_the_contract(layer):
    check_module(layer, x)


@pytest.mark.parametrize("adapt", KINDS)
def test_an_adapted_decoder_starts_as_the_base_and_merges_to_what_it_computes(
    adapt, key
):
    base = models.Decoder(CONFIG)
    params = base.init(key)
    before, _ = run(base, params)
    model, adapted = adapt(base, params, "**", key=key)
    assert "lora" in adapted["embed"]
    np.testing.assert_allclose(run(model, adapted)[0], before, rtol=1e-5, atol=1e-5)
    adapted = moved(adapted)
    after, halves = run(model, adapted)
    assert float(jnp.abs(after - before).max()) > 0.05
    plain, merged = finetune.merge(model, adapted)
    assert plain == base
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    np.testing.assert_allclose(run(plain, merged)[0], after, rtol=1e-4, atol=1e-4)
    # The two halves of the model see the adapter of the head as well.
    np.testing.assert_allclose(halves, after, rtol=1e-4, atol=1e-4)
    bare, found = finetune.remove(model, adapted)
    assert bare == base
    assert tree.flatten(found).keys() == tree.flatten(params).keys()
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, found, params))


def test_the_change_is_alpha_over_rank_a_b():
    layer = nn.Linear(4, 5)
    base = layer.init(jax.random.key(0))
    model, params = finetune.lora(
        layer, base, "**", rank=2, alpha=6.0, key=jax.random.key(1)
    )
    params = moved(params)
    a, b = params["lora"]["a"], params["lora"]["b"]
    assert a.shape == (4, 2) and b.shape == (2, 5)
    expected = x @ base["kernel"] + base["bias"] + 3.0 * (x @ a @ b)
    np.testing.assert_allclose(model(params, x), expected, rtol=1e-5, atol=1e-6)


def test_a_starts_as_peft_s_and_b_at_zero(key):
    layer = nn.Linear(64, 5)
    _, params = finetune.lora(layer, layer.init(key), "**", 32, key=key)
    a = np.asarray(params["lora"]["a"])
    assert np.abs(a).max() <= 64**-0.5 and a.std() == pytest.approx(
        64**-0.5 / 3**0.5, rel=0.05
    )
    assert not params["lora"]["b"].any()


@pytest.mark.parametrize("adapt", KINDS)
def test_every_layer_of_a_stack_has_an_adapter_of_its_own(adapt, key):
    blocks = [nn.Linear(4, 4)] * 3
    stacked = nn.stack(blocks)
    params = stacked.init(key)
    model, params = adapt(stacked, params, "**", rank=2, key=jax.random.key(1))
    assert params["lora"]["a"].shape == (3, 4, 2)
    assert not np.array_equal(*params["lora"]["a"][:2])
    params, y = moved(params), x
    layer = dataclasses.replace(model.block)
    for index in range(3):
        y = layer(model.layer_params(params, index), y)
    np.testing.assert_allclose(model(params, x), y, rtol=1e-5, atol=1e-5)
    plain, merged = finetune.merge(model, params)
    np.testing.assert_allclose(plain(merged, x), y, rtol=1e-5, atol=1e-5)


def test_adapters_reach_the_stretches_and_cycles_of_a_stack(key):
    wide, narrow = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
    stacked = nn.stack([wide] * 2 + [narrow, wide] * 2)
    params = stacked.init(key)
    model, params = finetune.lora(stacked, params, ("0", "1/1"), key=key)
    names = tree.flatten(finetune.split(params)[0])
    assert sorted(names) == ["0/lora/a", "0/lora/b", "1/1/lora/a", "1/1/lora/b"]
    params = moved(params)
    plain, merged = finetune.merge(model, params)
    np.testing.assert_allclose(plain(merged, x), model(params, x), rtol=1e-5, atol=1e-5)


def test_an_adapter_depends_on_the_key_and_its_path_alone(key):
    model = nn.Sequential([nn.Linear(4, 4), nn.Linear(4, 4)])
    params = model.init(key)
    _, both = finetune.lora(model, params, "*", 2, key=key)
    adapted, one = finetune.lora(model, params, "1", 2, key=key)
    np.testing.assert_array_equal(both["1"]["lora"]["a"], one["1"]["lora"]["a"])
    drawn = adapted.init(key)["1"]["lora"]["a"]
    np.testing.assert_array_equal(drawn, one["1"]["lora"]["a"])


def test_dora_is_its_formula_and_its_gradient_holds_the_length_constant(key):
    layer = nn.Linear(4, 5)
    model, params = finetune.dora(layer, layer.init(key), "**", 2, 6.0, key=key)
    start = params["lora"]["magnitude"]
    np.testing.assert_allclose(start, jnp.linalg.norm(params["kernel"], axis=0), 1e-6)
    params = moved(params)
    length = jnp.linalg.norm(
        params["kernel"] + 3.0 * params["lora"]["a"] @ params["lora"]["b"], axis=0
    )

    def formula(lora):
        v = params["kernel"] + 3.0 * lora["a"] @ lora["b"]
        y = x @ (lora["magnitude"] * v / length) + params["bias"]
        return jnp.sum(jnp.sin(y)), y

    def ours(lora):
        y = model({**params, "lora": lora}, x)
        return jnp.sum(jnp.sin(y)), y

    expected, y = jax.grad(formula, has_aux=True)(params["lora"])
    found, got = jax.grad(ours, has_aux=True)(params["lora"])
    np.testing.assert_allclose(got, y, rtol=1e-5, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), found, expected
    )


def test_the_kernel_keeps_its_dtype_and_the_adapter_is_wide(key):
    layer = nn.Linear(4, 5)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), layer.init(key))
    for adapt in KINDS:
        model, params = adapt(layer, narrow, "**", key=key)
        dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(params["lora"])}
        assert dtypes == {"float32"}
        assert model(params, x).dtype == jnp.bfloat16
        assert finetune.merge(model, params)[1]["kernel"].dtype == jnp.bfloat16


def test_axes_of_an_adapter_are_those_of_its_layer(key):
    layer = finetune.DoRA(nn.Linear(4, 6, axes=("embed", "mlp")), 2)
    axes = jd.axes(layer)["lora"]
    assert axes == {"a": ("embed", None), "b": (None, "mlp"), "magnitude": ("mlp",)}


def test_dropout_of_an_adapter_needs_a_key_and_leaves_the_base_alone(key):
    model = nn.Sequential([nn.Linear(4, 4)])
    model, params = finetune.lora(model, model.init(key), "*", 2, key=key, dropout=0.5)
    np.testing.assert_array_equal(
        model(params, x, key=key), model(params, x, key=None)
    )  # B is 0
    params = moved(params)
    assert not np.allclose(model(params, x, key=key), model(params, x, key=None))
    with pytest.raises(TypeError, match="dropout with rate 0.5 needs key"):
        model(params, x)


def test_what_does_not_fit_is_refused_by_name(key):
    model = nn.Sequential([nn.Linear(4, 4), nn.LayerNorm(4)])
    params = model.init(key)
    with pytest.raises(ValueError, match="pattern '1' fits no path; there are 1: 0"):
        finetune.lora(model, params, "1", key=key)
    with pytest.raises(ValueError, match="1/bias: missing"):
        finetune.lora(model, {"0": params["0"]}, "0", key=key)
    adapted = finetune.lora(model, params, "0", key=key)
    with pytest.raises(ValueError, match="^0: expected a layer without an adapter"):
        finetune.dora(*adapted, "0", key=key)
    with pytest.raises(TypeError, match="LoRA: expected a layer with .*LayerNorm"):
        finetune.LoRA(nn.LayerNorm(4))


def test_split_and_join_are_inverse_and_keep_empty_parts(key):
    model = nn.Sequential([nn.Linear(4, 4), nn.Dropout(0.1)])
    _, params = finetune.lora(model, model.init(key), "0", key=key)
    trained, frozen = finetune.split(params)
    assert sorted(tree.flatten(trained)) == ["0/lora/a", "0/lora/b"]
    assert frozen["1"] == {} and sorted(frozen["0"]) == ["bias", "kernel"]
    joined = finetune.join(trained, frozen)
    assert jax.tree.structure(joined) == jax.tree.structure(params)
    assert "1" in joined
    more, _ = finetune.split(params, (finetune.ADAPTERS, "**/bias"))
    assert sorted(tree.flatten(more)) == ["0/bias", "0/lora/a", "0/lora/b"]
    with pytest.raises(ValueError, match="fits no path"):
        finetune.split(model.init(key))
    with pytest.raises(ValueError, match="0/lora/a: expected a leaf in one tree"):
        finetune.join(trained, params)


def loss_of(model):
    def loss_fn(params, batch):
        logits = model(params, batch[:, :-1])
        loss = losses.cross_entropy(logits, batch[:, 1:])
        return loss, {"weight": jnp.float32(batch.size), "metrics": {"one": 1.0}}

    return loss_fn


def test_a_quantised_decoder_learns_a_text_by_its_adapters_alone(key):
    model = models.Decoder(CONFIG)
    model, params = finetune.quantize(
        model, model.init(key), 4, group=8, patterns="blocks/**"
    )
    patterns = ("**/attn/*", "**/mlp/*", "head")
    model, params = finetune.lora(model, params, patterns, 8, 16.0, key=key)
    trained, frozen = finetune.split(params)
    optimizer = optax.adam(3e-2)
    state = TrainState.create(trained, optimizer, key=key, model_state=frozen)
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    assert moments == 2 * jd.count(trained) + 1
    step = make_step(finetune.with_frozen(loss_of(model)), optimizer)
    text = jnp.asarray(rng.permutation(11)[None])
    for _ in range(200):
        state, metrics = step(state, text)
    assert metrics["loss"] < 0.05 and metrics["one"] == 1
    after = finetune.join(state.params, state.model_state)
    for path, leaf in tree.flatten(after).items():
        same = np.array_equal(leaf, tree.flatten(params)[path])
        assert same != tree.matches(finetune.ADAPTERS, path), path
    plain, merged = finetune.merge(model, after)
    loss, _ = jax.jit(loss_of(plain))(merged, text)
    assert loss == pytest.approx(float(metrics["loss"]), abs=0.02)


def test_with_frozen_hands_a_key_to_a_loss_that_takes_one(key):
    def loss_fn(params, batch, key):
        return jnp.sum(params["a"] * params["b"]) + 0 * jax.random.normal(key)

    optimizer = optax.sgd(1.0)
    state = TrainState.create(
        {"a": jnp.ones(2)}, optimizer, key=key, model_state={"b": jnp.full(2, 3.0)}
    )
    step = make_step(finetune.with_frozen(loss_fn), optimizer)
    state, _ = step(state, jnp.zeros(1))
    assert state.params["a"].tolist() == [-2.0, -2.0]

    def stateful(params, batch, state):
        return 0.0, {"state": state}

    with pytest.raises(TypeError, match="got one that takes state"):
        finetune.with_frozen(stateful)
