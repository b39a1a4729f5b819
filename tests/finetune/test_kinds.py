"""Adapters of every kind of layer: what they compute, merge to, and leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import finetune, nn
from jaxdl.core import tree
from tests.finetune.test_adapters import moved

rng = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


class Doubled(jd.Module):
    """A user's layer with a `matrix`: twice its kernel."""

    in_features: int
    out_features: int

    def spec(self):
        return {"kernel": jd.Param((self.in_features, self.out_features))}

    def __call__(self, params, x):
        return 2 * x @ params["kernel"]

    def matrix(self, params):
        return 2 * params["kernel"]


IMAGE, WAVE, TOKENS = normal(2, 5, 5, 4), normal(2, 6, 4), jnp.array([[0, 6], [3, 3]])
LAYERS = {
    "conv": (nn.Conv(4, 6, (3, 2), 2, "SAME", axes=("embed", "mlp")), IMAGE),
    "dilated": (nn.Conv(4, 6, (3, 3), padding=2, dilation=2, bias=False), IMAGE),
    "grouped": (nn.Conv(4, 6, 3, groups=2), WAVE),
    "transposed": (nn.ConvTranspose(4, 6, (3, 3), 2, groups=2), IMAGE),
    "heads": (nn.Einsum("btd,dhk->bthk", (4, 3, 2), True), WAVE),
    "block diagonal": (nn.Einsum("tbh,ohb->bto", (5, 4, 6), True), normal(2, 6, 4)),
    "embedding": (nn.Embedding(7, 6), TOKENS),
    "experts": (nn.ExpertLinear(2, 4, 6, True, ("embed", "mlp")), WAVE),
    "linear": (nn.Linear(4, 6), WAVE),
}
kinds = pytest.mark.parametrize("kind", LAYERS)
adapters = pytest.mark.parametrize("adapt", [finetune.lora, finetune.dora])


def adapted(adapt, layer, key, **options):
    base = jax.tree.map(lambda leaf: leaf + 0.3, layer.init(key))
    model, params = adapt(layer, base, "**", 2, 3.0, key=key, **options)
    return base, model, params, moved(params)


@adapters
@kinds
def test_it_starts_as_the_layer_and_merges_to_what_it_computes(adapt, kind, key):
    layer, x = LAYERS[kind]
    base, model, params, after = adapted(adapt, layer, key)
    jd.check_params(model, params)
    plain, merged = finetune.merge(model, after)
    assert plain == layer
    runs = jax.jit(lambda *p: (layer(p[0], x), layer(p[1], x), model(p[2], x)))
    before, y, start = runs(base, merged, params)
    np.testing.assert_allclose(start, before, rtol=1e-5, atol=1e-5)
    assert np.abs(y - before).max() > 0.05
    np.testing.assert_allclose(runs(base, merged, after)[2], y, rtol=1e-5, atol=1e-5)
    bare, found = finetune.remove(model, after)
    assert bare == layer and jax.tree.all(
        jax.tree.map(lambda a, b: a is b, found, base)
    )


@adapters
@kinds
def test_of_a_stack_each_layer_merges_by_itself(adapt, kind, key):
    layer, x = LAYERS[kind]
    _, model, _, _ = adapted(adapt, layer, key)
    deep = nn.Repeat(layer, 2)
    _, deep_model, _, params = adapted(adapt, deep, key)
    assert deep_model.block == model
    _, merged = finetune.merge(deep_model, params)
    for index in range(2):
        one = deep_model.layer_params(params, index)
        _, alone = finetune.merge(model, one)
        jax.tree.map(
            lambda a, b, i=index: np.testing.assert_allclose(a[i], b, 1e-6, 1e-6),
            merged, alone,
        )  # fmt: skip
    axes = jd.axes(deep_model)["lora"]
    assert all(names[0] == "layers" for names in axes.values())


@kinds
def test_gradients_are_those_of_the_merged_kernel(kind, key):
    """d loss / d a and d b by the chain rule through the kernel of the plain layer."""
    layer, x = LAYERS[kind]
    _, model, _, params = adapted(finetune.lora, layer, key)

    def both(ours, theirs):
        plain, merged = finetune.merge(model, {**params, "lora": theirs})
        found = jnp.sum(jnp.sin(model({**params, "lora": ours}, x)))
        return found + jnp.sum(jnp.sin(plain(merged, x)))

    found, expected = jax.jit(jax.grad(both, (0, 1)))(params["lora"], params["lora"])
    for name in ("a", "b"):
        assert np.abs(expected[name]).max() > 1e-3
        np.testing.assert_allclose(found[name], expected[name], 1e-4, 1e-4)


def test_dora_holds_each_output_s_length_to_its_magnitude(key):
    over = {
        "conv": (0, 1, 2), "heads": (0,), "block diagonal": (1,), "embedding": (0,),
        "experts": (1,), "linear": (0,),
    }  # fmt: skip
    for kind, axes in over.items():
        layer, _ = LAYERS[kind]
        _, model, _, params = adapted(finetune.dora, layer, key)
        kernel = model.matrix(params)
        magnitude = params["lora"]["magnitude"]
        length = np.sqrt(np.square(kernel).sum(axes))
        np.testing.assert_allclose(length, np.abs(magnitude), 1e-5, err_msg=kind)


def test_an_adapted_table_scores_with_what_it_looks_up(key):
    for adapt in (finetune.lora, finetune.dora):
        _, model, _, params = adapted(adapt, nn.Embedding(7, 6), key)
        x = normal(3, 6)
        plain, merged = finetune.merge(model, params)
        np.testing.assert_allclose(
            model.logits(params, x), plain.logits(merged, x), rtol=1e-5, atol=1e-5
        )
    assert jnp.isnan(model(params, jnp.array([7]))).all()
    with pytest.raises(AttributeError, match="Linear has none"):
        finetune.LoRA(nn.Linear(2, 2)).logits({}, x)


@pytest.mark.parametrize("dispatch", ["ragged", "capacity", "dense"])
@adapters
def test_each_expert_has_an_adapter_in_every_dispatch(adapt, dispatch, key):
    layer = nn.MoE(4, 5, 3, 2, bias=True, dispatch=dispatch, capacity=3.0)
    base = layer.init(key)
    model, params = adapt(layer, base, "experts/*", 2, key=key)
    assert params["experts"]["up"]["lora"]["a"].shape == (3, 4, 2)
    params = moved(params)
    plain, merged = finetune.merge(model, params)
    assert plain == layer
    x = normal(2, 5, 4)
    y = jax.jit(model)(params, x)
    np.testing.assert_allclose(y, jax.jit(plain)(merged, x), rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(y - layer(base, x)).max()) > 0.01


def test_a_layer_of_ones_own_with_a_matrix_can_be_adapted(key):
    layer = Doubled(4, 5)
    base = layer.init(key)
    model, params = finetune.lora(layer, base, "**", 2, 2.0, key=key)
    params = moved(params)
    x, lora = normal(3, 4), params["lora"]
    expected = 2 * x @ base["kernel"] + x @ lora["a"] @ lora["b"]
    np.testing.assert_allclose(model(params, x), expected, rtol=1e-5, atol=1e-5)


def test_latent_attention_mamba_and_patches_are_reached_by_their_paths(key):
    # What they compute is held in test_dropout.
    rope = nn.RoPE(4)
    reached = {
        "kv_up": nn.LatentAttention(8, 2, 6, 4, 4, 4, rope, q_rank=4),
        "select": nn.Mamba(8, 3),
        "project": nn.PatchEmbedding((2, 2), 3, 6),
    }
    for name, layer in reached.items():
        model, params = finetune.lora(layer, layer.init(key), "*", 2, key=key)
        assert sorted(params[name]["lora"]) == ["a", "b"]
        jd.check_params(model, params)


def test_adapters_of_all_kinds_are_split_saved_and_loaded(tmp_path, key):
    pytest.importorskip("safetensors")
    layers = [nn.Embedding(7, 4), nn.Conv(4, 4, 3), nn.MoE(4, 5, 3, 2)]
    model = nn.Sequential(layers)
    model, params = finetune.dora(model, model.init(key), "**", 2, key=key)
    trained = moved(params)
    names = tree.flatten(finetune.split(trained)[0])
    assert {"0/lora/a", "1/lora/b", "2/experts/down/lora/magnitude"} < set(names)
    path = tmp_path / "adapters.safetensors"
    finetune.save_adapters(path, trained)
    loaded = finetune.load_adapters(path, model, params)
    jax.tree.map(np.testing.assert_array_equal, loaded, trained)


def test_a_kernel_that_is_normalised_is_not_adapted(key):
    model = nn.Sequential([nn.WeightNorm(nn.Linear(4, 4))])
    with pytest.raises(ValueError, match="^0: .* got one in a WeightNorm"):
        finetune.lora(model, model.init(key), "0", key=key)


def test_a_quantised_table_is_adapted_and_merges_to_a_plain_one(key):
    layer = nn.Embedding(7, 32)
    small, ints = finetune.quantize(layer, layer.init(key), 4)
    model, params = finetune.lora(small, ints, "**", 2, key=key)
    params = moved(params)
    plain, merged = finetune.merge(model, params)
    assert plain == layer
    np.testing.assert_allclose(
        plain(merged, TOKENS), model(params, TOKENS), rtol=1e-5, atol=1e-5
    )
