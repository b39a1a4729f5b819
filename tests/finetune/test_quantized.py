import functools

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import finetune, models, nn
from jaxdl.core import tree
from jaxdl.finetune import codes

rng = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@given(st.lists(st.integers(-8, 7), min_size=3, max_size=4), st.integers(0, 2))
def test_packing_loses_nothing(numbers, axis):
    shape = [2, 2, 2]
    shape[axis] = len(numbers)
    along = np.reshape(numbers, [-1 if i == axis else 1 for i in range(3)])
    whole = jnp.asarray(np.broadcast_to(along, shape), jnp.int8)
    packed = codes.pack(whole, axis)
    assert packed.dtype == jnp.uint8 and packed.shape[axis] == -(-len(numbers) // 2)
    np.testing.assert_array_equal(codes.unpack(packed, len(numbers), axis), whole)


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("bits, groups", [(8, 1), (8, 4), (4, 1), (4, 4)])
@pytest.mark.parametrize("lead", [(), (3,)])
def test_an_error_is_at_most_half_a_scale(axis, bits, groups, lead):
    values = normal(*lead, 12, 20)
    integers, scale = codes.encode(values, bits, groups, axis)
    decoded = codes.decode(integers, scale, values.shape[axis], axis)
    limit = 2 ** (bits - 1) - 1
    split = np.moveaxis(np.asarray(values), axis, -1)
    split = split.reshape(*split.shape[:-1], groups, -1)
    largest = np.abs(split).max(-1, keepdims=True)
    error = np.abs(np.moveaxis(np.asarray(decoded - values), axis, -1))
    assert (error.reshape(split.shape) <= largest / limit * 0.5001).all()
    # What is on the grid stays: a second rounding changes nothing.
    again, _ = codes.encode(decoded, bits, groups, axis)
    np.testing.assert_array_equal(again, integers)


@pytest.mark.parametrize("bits, largest", [(8, 127), (4, 7)])
def test_integers_that_fit_come_back_exactly(bits, largest):
    values = rng.integers(-largest, largest + 1, (4, 6)).astype(np.float32)
    values[2] = largest
    decoded = codes.decode(*codes.encode(jnp.asarray(values), bits, 1, 0), 4, 0)
    np.testing.assert_array_equal(decoded, values)


def test_zeros_stay_and_what_is_not_finite_is_not_hidden():
    values = jnp.zeros((4, 3)).at[1, 1].set(jnp.nan).at[1, 2].set(jnp.inf)
    decoded = codes.decode(*codes.encode(values, 8, 1, 0), 4, 0)
    assert not decoded[:, 0].any() and jnp.isnan(decoded[:, 1:]).all()


@pytest.mark.parametrize(
    "bits, size, groups",
    [(8, 9, 1), (8, 12, 3), (4, 8, 1), (4, 9, 1), (4, 12, 3), (4, 9, 3)],
)
def test_a_product_with_codes_is_that_with_their_matrix(bits, size, groups):
    integers, scale = codes.encode(normal(size, 5), bits, groups, 0)
    x = normal(2, 3, size)
    whole = codes.decode(integers, scale, size, 0)

    def both(x):
        return codes.product(x, integers, scale), x @ whole

    np.testing.assert_allclose(*both(x), rtol=1e-5, atol=1e-5)
    found, expected = (
        jax.grad(lambda x, i=i: jnp.sum(jnp.sin(both(x)[i])))(x) for i in (0, 1)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_one_layer_s_kernel_is_multiplied_out_at_a_time(bits, optimized):
    """Of a scan over 8 layers, forwards and backwards: never all in floats."""
    layer = finetune.QuantizedLinear(256, 256, False, bits=bits, group=32)
    model = nn.Repeat(finetune.LoRA(layer, 2), 8)
    trained, frozen = finetune.split(jd.abstract(model))
    x = jax.ShapeDtypeStruct((2, 256), jnp.float32)
    kernel = 4 * 256 * 256

    def loss(trained, frozen, x):
        return jnp.sum(jnp.sin(model(finetune.join(trained, frozen), x)))

    for function in (loss, jax.grad(loss)):
        program = jax.jit(function).lower(trained, frozen, x).compile()
        assert program.memory_analysis().temp_size_in_bytes < 3 * kernel


LAYERS = [nn.Linear(32, 6), nn.Linear(32, 6, bias=False)]


@pytest.mark.parametrize("bits, group", [(8, None), (8, 8), (4, 16), (4, 32)])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_quantised_linear_is_the_linear_of_the_rounded_kernel(
    layer, bits, group, key
):
    params = layer.init(key)
    quantized, small = finetune.quantize(layer, params, bits, group)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), small) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), jd.abstract(quantized)
    )
    jd.check_params(quantized, quantized.init(key))
    x = normal(5, 32)
    rounded = {**params, "kernel": quantized.matrix(small)}
    y = jax.jit(quantized)(small, x)
    np.testing.assert_allclose(y, layer(rounded, x), rtol=1e-4, atol=1e-5)
    plain, back = finetune.dequantize(quantized, small)
    np.testing.assert_allclose(plain(back, x), y, rtol=1e-4, atol=1e-5)
    error = np.abs(np.asarray(y - layer(params, x)))
    step = np.abs(params["kernel"]).max(0) / (2 ** (bits - 1) - 1)
    assert (error <= 0.5001 * step * np.abs(x).sum(-1, keepdims=True)).all()


@pytest.mark.parametrize("bits, group", [(8, None), (8, 4), (4, 8)])
def test_a_quantised_embedding_looks_up_and_scores_with_the_rounded_table(
    bits, group, key
):
    layer = nn.Embedding(7, 8)
    params = layer.init(key)
    quantized, small = finetune.quantize(layer, params, bits, group)
    rounded = {"embedding": quantized.matrix(small)}
    tokens = jnp.array([[0, 6], [3, 3]])
    np.testing.assert_array_equal(quantized(small, tokens), layer(rounded, tokens))
    x = normal(2, 8)
    np.testing.assert_allclose(
        quantized.logits(small, x), layer.logits(rounded, x), rtol=1e-5, atol=1e-6
    )
    assert jnp.isnan(quantized(small, jnp.array([-1, 7]))).all()
    with pytest.raises(ValueError, match="integer tokens"):
        quantized(small, jnp.array([1.0]))


CONFIG = models.DecoderConfig(
    40, 16, dim=32, num_layers=2, num_heads=2, positions="rope", norm="rms",
    gated=True, hidden=64, bias=False, tie_embeddings=True,
)  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, tokens):
    """Logits, and the same from the two halves of the model."""
    halves = model.hidden(params, tokens) @ model.head_kernel(params)
    return model(params, tokens), halves


@pytest.mark.parametrize("bits, tolerance", [(8, 0.02), (4, 0.3)])
def test_a_quantised_decoder_is_near_the_whole_one_and_small(bits, tolerance, key):
    model = models.Decoder(CONFIG)
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * normal(*leaf.shape), model.init(key)
    )
    tokens = jnp.asarray(rng.integers(0, 40, (2, 9)))
    small_model, small = finetune.quantize(model, params, bits)
    assert isinstance(small_model.embed, finetune.QuantizedEmbedding)
    expected, _ = run(model, params, tokens)
    logits, halves = run(small_model, small, tokens)
    spread = float(expected.std())
    assert float(jnp.abs(logits - expected).mean()) < tolerance * spread
    np.testing.assert_allclose(halves, logits, rtol=1e-4, atol=1e-4)
    weights = sum(
        leaf.size for path, leaf in tree.flatten(params).items() if "norm" not in path
    )
    norms = jd.count(params) - weights
    scales = weights / 32 if bits == 4 else sum(
        leaf.size for path, leaf in tree.flatten(small).items()
        if path.endswith("/scale") and "norm" not in path
    )  # fmt: skip
    assert jd.nbytes(small) == weights * bits // 8 + 4 * (scales + norms)
    assert jd.nbytes(small) < jd.nbytes(params) * {8: 0.34, 4: 0.17}[bits]


def test_an_adapted_quantised_decoder_reads_through_a_cache(key):
    model = models.Decoder(CONFIG)
    model, params = finetune.quantize(model, model.init(key), 4)
    tokens = jnp.asarray(rng.integers(0, 40, (2, 9)))[:, :8]
    before, _ = run(model, params, jnp.pad(tokens, ((0, 0), (0, 1))))
    model, params = finetune.lora(model, params, "**/attn/*", key=key)
    read = jax.jit(lambda p, t, cache: model(p, t, cache=cache))
    cache, logits = model.init_cache(2, 8), []
    for part in jnp.split(tokens, 2, axis=1):
        scores, cache = read(params, part, cache)
        logits.append(scores)
    joined = jnp.concatenate(logits, 1)
    np.testing.assert_allclose(joined, before[:, :8], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_flow_to_inputs_and_adapters_and_not_to_integers(bits, key):
    layer = nn.Linear(32, 6)
    model, params = finetune.quantize(layer, layer.init(key), bits)
    model, params = finetune.lora(model, params, "**", 2, key=key)
    b = params["lora"]["b"]
    params["lora"]["b"] = b + normal(*b.shape)
    x = normal(3, 32)

    def total(params, x):
        return jnp.sum(jnp.sin(model(params, x)))

    grads, of_x = jax.grad(total, (0, 1), allow_int=True)(params, x)
    assert grads["codes"].dtype == jax.dtypes.float0
    plain, merged = finetune.merge(model, params)
    assert isinstance(plain, nn.Linear) and sorted(merged) == ["bias", "kernel"]
    expected = jax.grad(lambda x: jnp.sum(jnp.sin(plain(merged, x))))(x)
    np.testing.assert_allclose(of_x, expected, rtol=1e-4, atol=1e-5)
    trained, frozen = finetune.split(params)
    alone = jax.grad(lambda t: total(finetune.join(t, frozen), x))(trained)
    assert sorted(tree.flatten(alone)) == ["lora/a", "lora/b"]
    for name, grad in alone["lora"].items():
        assert grad.any()
        np.testing.assert_allclose(grad, grads["lora"][name], rtol=1e-5, atol=1e-6)


def test_a_base_may_be_quantised_before_or_after_it_was_adapted(key):
    model = nn.Sequential([nn.Linear(32, 4), nn.Linear(4, 4)])
    params = model.init(key)
    first = finetune.lora(*finetune.quantize(model, params, 8), "0", key=key)
    second = finetune.quantize(*finetune.lora(model, params, "0", key=key), 8)
    assert first[0] == second[0]
    jax.tree.map(np.testing.assert_array_equal, first[1], second[1])


def test_only_what_fits_is_quantised_and_computed_in_the_dtype_of_its_scales(key):
    model = nn.Sequential([nn.Linear(32, 4), nn.LayerNorm(4), nn.Linear(4, 4)])
    params = jd.Policy(jnp.bfloat16).cast(model.init(key))
    small_model, small = finetune.quantize(model, params, 8, patterns="0")
    assert sorted(small["0"]) == ["bias", "codes", "scale"]
    assert small["2"] is params["2"]
    y = small_model(small, normal(2, 32))
    assert y.dtype == jnp.bfloat16
    wide = jd.Policy(jnp.float32).cast(small)
    assert wide["0"]["codes"].dtype == jnp.int8
    assert small_model(wide, normal(2, 32)).dtype == jnp.float32
    # A stack is one layer here, and its leading axis stays.
    stacked = nn.Repeat(nn.Linear(32, 32, axes=("embed", "mlp")), 3)
    deep, packed = finetune.quantize(stacked, stacked.init(key), 4, 16)
    assert packed["codes"].shape == (3, 16, 32) and packed["scale"].shape == (3, 2, 32)
    assert jd.axes(deep)["scale"] == ("layers", "embed", "mlp")
    plain, back = finetune.dequantize(deep, packed)
    x = normal(2, 32)
    np.testing.assert_allclose(plain(back, x), deep(packed, x), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_quantised_is_refused_by_name(key):
    model = nn.Sequential([nn.Linear(32, 4), nn.Linear(4, 4)])
    params = model.init(key)
    with pytest.raises(ValueError, match="^1: QuantizedLinear.group: .* divides 4"):
        finetune.quantize(model, params, 4)
    with pytest.raises(ValueError, match="bits: expected 8 or 4, got 3"):
        finetune.quantize(model, params, 3)
    with pytest.raises(ValueError, match="pattern '2' fits no path"):
        finetune.quantize(model, params, patterns="2")
    small_model, small = finetune.quantize(model, params)
    with pytest.raises(ValueError, match=r"0: expected \[..., 32\], got float32\[4\]"):
        small_model(small, jnp.ones(4))
