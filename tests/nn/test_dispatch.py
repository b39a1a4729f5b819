import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import nn
from jaxdl.nn.attend import Sight
from jaxdl.nn.dispatch import Options, dispatch
from tests.drawn import drawn

BATCH, SEQ, DIM, HEADS, KV_HEADS = 2, 6, 8, 4, 2
rng = np.random.default_rng(0)
x = jnp.asarray(rng.normal(size=(BATCH, SEQ, DIM)), jnp.float32)
segments = jnp.array([[0, 0, 0, 1, 1, 2], [5, 5, 5, 5, 5, 5]])
positions = jnp.array([[-2, -1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]])
close = dict(rtol=1e-5, atol=1e-5)


def layers(*implementations, **settings):
    settings = {"num_kv_heads": KV_HEADS, "causal": True, **settings}
    return [
        nn.Attention(DIM, HEADS, implementation=each, **settings)
        for each in implementations
    ]


def values_and_gradients(layer, params, **given):
    def loss(params, x):
        y = layer(params, x, **given)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))), y

    (_, y), d = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
    return y, d


@pytest.mark.parametrize(
    ("names", "settings", "given"),
    [
        (["auto", "xla"], {"window": 3}, {"segment_ids": segments}),
        (["auto"], {"sinks": True, "softcap": 2.0}, {"positions": positions}),
        (["auto", "xla"], {"causal": False}, {"positions": positions}),
        (["auto"], {"causal": False, "window": 2, "sinks": True}, {}),
    ],
)
def test_every_implementation_computes_the_same(names, settings, given):
    plain, *others = layers(None, *names, **settings)
    params = drawn(plain)
    expected = values_and_gradients(plain, params, **given)
    for layer in others:
        got = values_and_gradients(layer, params, **given)
        check = functools.partial(np.testing.assert_allclose, **close)
        jax.tree.map(check, got, expected)


def test_a_memory_and_a_cache_are_read_block_by_block():
    plain, blockwise = layers(None, "blockwise", causal=False)
    params = drawn(plain)
    memory = x[:, ::-1]
    expected = plain(params, x, memory=memory)
    got = jax.jit(blockwise)(params, x, memory=memory)
    np.testing.assert_allclose(got, expected, **close)
    plain, blockwise = layers(None, "blockwise", window=3)
    expected = plain(params, x)
    cache = blockwise.init_cache(BATCH, 8)
    step = jax.jit(lambda x, cache: blockwise(params, x, cache=cache))
    first, cache = step(x[:, :3], cache)
    second, _ = step(x[:, 3:], cache)
    parts = jnp.concatenate([first, second], 1)
    np.testing.assert_allclose(parts, expected, **close)


def wide(seq=256, dtype=jnp.bfloat16):
    q = jax.ShapeDtypeStruct((1, seq, 4, 64), dtype)
    k = jax.ShapeDtypeStruct((1, seq, 2, 64), dtype)
    return q, k, k


def asked(seq=256, keys=None, **options):
    static = {name: options.pop(name) for name in ("window", "mask") if name in options}
    keys = np.arange(seq) if keys is None else keys
    sight = Sight(np.arange(seq), keys, causal=True, **static)
    return Options(sight, 0.125, **options)


def chosen(implementation, platform, ask=None, arrays=None):
    """(kernel, reason) of one attention."""
    arrays, ask = arrays or wide(), ask or asked()
    call = functools.partial(dispatch, implementation, ask=ask)
    (use,) = jd.which_backend(call, *arrays, platform=platform).uses
    return use.kernel, use.reason


def lowered(implementation, platform, ask):
    call = jax.jit(functools.partial(dispatch, implementation, ask=ask))
    return call.trace(*wide()).lower(lowering_platforms=(platform,)).as_text()


def test_auto_is_splash_in_the_program_of_a_tpu_alone():
    ask = asked(window=100, softcap=30.0)
    assert chosen("auto", "tpu", ask) == ("splash", "")
    assert chosen("auto", "cpu", ask) == ("blockwise", "")
    assert "tpu_custom_call" in lowered("auto", "tpu", ask)
    assert "custom_call" not in lowered("auto", "cpu", ask)
    assert "tpu_custom_call" not in lowered("blockwise", "tpu", ask)


@pytest.mark.parametrize(
    ("ask", "arrays", "reason"),
    [
        (asked(mask=jnp.ones((1, 1, 1, 256), bool)), wide(), "a mask"),
        (asked(score_bias=jnp.zeros((1, 1, 1, 256))), wide(), "score_bias"),
        (asked(keys=jnp.arange(256)), wide(), "positions that are not known"),
        (asked(), wide(dtype=jnp.float16), "float16"),
    ],
)
def test_what_splash_cannot_do_is_an_error_and_auto_says_why(ask, arrays, reason):
    kernel, why = chosen("auto", "tpu", ask, arrays)
    assert kernel == "blockwise" and why.startswith(f"splash: {reason}")
    refused = f"'splash' cannot do this: {reason}.*take 'blockwise' or 'auto', or None"
    with pytest.raises(ValueError, match=refused):
        chosen("splash", "tpu", ask, arrays)


def test_what_cudnn_cannot_do_is_an_error_and_auto_says_why():
    ask = asked(softcap=30.0)
    assert chosen("auto", "gpu", ask) == ("blockwise", "cudnn: softcap")
    with pytest.raises(ValueError, match="'cudnn' cannot do this: softcap"):
        chosen("cudnn", "gpu", ask)
    # Whether it is there and takes these shapes is JAX's to say.
    kernel, why = chosen("auto", "gpu", arrays=wide(dtype=jnp.float32))
    assert kernel == "blockwise" and why.startswith("cudnn: ")


def test_one_query_and_dropout_of_the_pattern_are_left_to_plain_attention():
    (layer,) = layers("auto", dropout=0.1)
    params, key = jd.abstract(layer), jax.random.key(0)

    def kernel(**given):
        call = functools.partial(layer, **given)
        (use,) = jd.which_backend(call, params, x, platform="tpu").uses
        return use.kernel, use.reason.split(",")[0]

    assert kernel(key=key) == ("plain", "dropout of the pattern")
    assert kernel(key=None) == ("splash", "")
    ask = asked(1, keys=np.arange(256))
    one = (wide(1)[0], *wide()[1:])
    assert chosen("auto", "tpu", ask, one)[1].startswith("one query")


def test_what_an_implementation_always_lacks_is_refused_when_it_is_built():
    for name in ("xla", "cudnn", "splash", "blockwise"):
        with pytest.raises(ValueError, match=f"'{name}' cannot do this: dropout"):
            layers(name, dropout=0.1)
    with pytest.raises(ValueError, match="'xla' cannot do this: sinks"):
        layers("xla", sinks=True)
    with pytest.raises(ValueError, match="expected None, auto, .* got 'flash'"):
        layers("flash")


def test_the_pattern_cannot_be_captured_where_a_kernel_keeps_it():
    (layer,) = layers("auto")
    params = drawn(layer)
    with pytest.raises(ValueError, match="'pattern' fits no tap"):
        jd.capture(layer, "pattern")(params, x)
    _, values = jd.capture(layer, "heads")(params, x)
    assert values["heads"].shape == (BATCH, SEQ, HEADS, DIM // HEADS)


@pytest.mark.slow
def test_auto_keeps_no_more_for_the_backward_pass_than_the_kernel_it_takes(optimized):
    def temporary(implementation):
        (layer,) = layers(implementation)
        model = nn.Repeat(layer, 4)
        loss = jax.grad(lambda params, x: model(params, x).sum())
        wide_x = jax.ShapeDtypeStruct((1, 1024, DIM), jnp.float32)
        compiled = jax.jit(loss).lower(jd.abstract(model), wide_x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary("auto") == temporary("blockwise")
