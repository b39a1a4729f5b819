import collections
import functools

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdl as jd
from jaxdl import models, shard
from jaxdl.nn.attend import Sight, attend
from jaxdl.nn.blockwise import attend_blockwise

BATCH, SEQ, HEADS, DIM, V_DIM = 2, 32, 8, 8, 6
RULES = shard.DATA | shard.TENSOR | shard.CONTEXT
MESHES = {"data": {"data": 2, "sequence": 4}, "tensor": {"tensor": 2, "sequence": 4}}
KINDS = {
    "ring": shard.ring_attention,
    "zigzag": shard.zigzag_attention,
    "all-to-all": shard.all_to_all_attention,
}
OPTIONS = {"scale": 0.5, "softcap": 2.0}


def inputs(kv_heads, seq=SEQ, seed=0):
    """q, k, v and the gradient of the result; sinks; the arrays of a sight."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    arrays = (
        normal(BATCH, seq, HEADS, DIM),
        normal(BATCH, seq, kv_heads, DIM),
        normal(BATCH, seq, kv_heads, V_DIM),
        normal(BATCH, seq, HEADS, V_DIM),
    )
    places = {
        "segment_ids": jnp.asarray(rng.integers(0, 2, (BATCH, seq)).cumsum(1) // 5),
        "real": jnp.asarray(rng.random((BATCH, seq)) > 0.2),
    }
    return arrays, normal(HEADS), places


def pulled(function, seq=SEQ, window=None, causal=True, **options):
    """The result of an attention and the gradients of q, k, v and sinks."""

    def run(arrays, sinks, places):
        order = np.arange(seq)
        sight = Sight(order, order, causal, window, **places)
        *arrays, d_y = arrays
        y, pull = jax.vjp(
            lambda *a: function(*a[:3], sight, sinks=a[3], **options), *arrays, sinks
        )
        return y, *pull(d_y)

    return run


def plain(q, k, v, sight, **options):
    return attend(q, k, v, visible=sight.visible(), **options)


def ordered(tree, change):
    """A tree with the sequence of every array that has one in another order."""
    return jax.tree.map(lambda x: change(x, 4) if x.ndim > 1 else x, tree)


@functools.cache
def expected(kv_heads):
    return jax.jit(pulled(plain, window=11, **OPTIONS))(*inputs(kv_heads))


@functools.cache
def compiled(kind, mesh, kv_heads):
    """Values and gradients on devices: the program, what it is given, the mesh."""
    mesh = jd.mesh(**MESHES[mesh])
    given = inputs(kv_heads)
    given = ordered(given, shard.to_zigzag) if kind == "zigzag" else given
    axes = ("batch", "sequence", None, None)
    arrays, places = (shard.place(x, mesh, RULES, axes=axes) for x in given[::2])
    sinks = shard.place(given[1], mesh, RULES, axes=(None,))
    run = pulled(KINDS[kind], window=11, **OPTIONS, block=4)
    with shard.use(mesh, RULES):
        program = jax.jit(run).lower(arrays, sinks, places).compile()
    return program, (arrays, sinks, places), mesh


@pytest.mark.parametrize(
    ("kind", "mesh", "kv_heads"),
    [("ring", "data", 4), ("zigzag", "tensor", 1), ("all-to-all", "data", 4)],
)
def test_values_and_gradients_are_those_of_one_device(kind, mesh, kv_heads):
    program, given, _ = compiled(kind, mesh, kv_heads)
    found = program(*given)
    found = ordered(found, shard.from_zigzag) if kind == "zigzag" else found
    for got, wanted in zip(found, expected(kv_heads), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def sent(kind):
    """How often arrays of each number of bytes are sent; integers of rows left out."""
    program, _, mesh = compiled(kind, "data", 4)
    found = collections.Counter()
    for each in shard.collectives(program, mesh):
        if each.nbytes > SEQ * 4:
            found[each.kind, each.axes, each.nbytes] += each.count
    return found


def test_a_ring_sends_nothing_but_parts_to_neighbours():
    part = SEQ // 4 * 4 * 4  # bytes of a part of the keys, for each feature
    kind = "collective-permute", ("sequence",)
    # Three steps there, three on the way back and four for gradients to come home.
    assert sent("ring") == {(*kind, part * DIM): 10, (*kind, part * V_DIM): 10}


def test_all_to_all_sends_four_arrays_there_and_four_back():
    found = sent("all-to-all")
    assert {kind[:2] for kind in found} == {("all-to-all", ("sequence",))}
    assert found.total() == 8


@pytest.mark.slow
def test_memory_of_a_ring_is_linear_in_the_sequence(optimized):
    mesh = jd.mesh(**MESHES["data"])

    def temporaries(seq):
        arrays = jax.eval_shape(lambda: inputs(4, seq)[0])
        placed = shard.shardings(arrays, mesh, RULES, axes=("batch", "sequence"))
        arrays = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            arrays,
            placed,
        )
        run = pulled(KINDS["ring"], seq, scale=0.5, block=64)
        with shard.use(mesh, RULES):
            program = jax.jit(lambda a: run(a, None, {})).lower(arrays).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporaries(1024) < 2.1 * temporaries(512)


@given(parts=st.integers(1, 5), chunk=st.integers(1, 4))
def test_zigzag_gives_all_parts_the_same_causal_work(parts, chunk):
    seq = 2 * parts * chunk
    order = shard.zigzag_order(seq, parts)
    seen = (order[:, None] >= order).sum(1).reshape(parts, -1).sum(1)
    assert len(set(seen)) == 1
    x = np.arange(seq)[None]
    np.testing.assert_array_equal(
        shard.from_zigzag(shard.to_zigzag(x, parts), parts), x
    )


def test_zigzag_refuses_a_sequence_that_it_cannot_cut():
    with pytest.raises(ValueError, match="multiple of 2 x 4 parts, got 12"):
        shard.zigzag_order(12, 4)


def decoder(**changes):
    config = models.DecoderConfig(
        vocab_size=32, dim=16, num_layers=2, num_heads=4, num_kv_heads=2, hidden=16,
        positions="rope", norm="rms", bias=False, **changes,
    )  # fmt: skip
    return models.Decoder(config)


def gradients(model):
    def loss(params, tokens, targets, positions):
        logits = model(params, tokens, positions=positions, key=None)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    return jax.jit(jax.value_and_grad(loss))


def test_a_decoder_of_parts_of_the_sequence_is_that_of_one_device(key):
    plain, split = decoder(), decoder(attention=shard.zigzag_attention)
    params = plain.init(key)
    tokens, targets = jax.random.randint(key, (2, BATCH, SEQ), 0, 32)
    row = tokens, targets, jnp.arange(SEQ)[None]
    wanted = gradients(plain)(params, *row)
    mesh = jd.mesh(**MESHES["data"])
    row = ordered(row, shard.to_zigzag)
    axes = ("batch", "sequence")
    row = *shard.place(row[:2], mesh, RULES, axes=axes), row[2]
    with shard.use(mesh, RULES):
        found = gradients(split)(params, *row)
    for got, want in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_where_the_sequence_is_whole_it_is_blockwise_attention():
    (q, k, v, _), _, _ = inputs(2, seq=8)
    order = np.arange(8)
    sight = Sight(order, order, causal=True)
    wanted = attend_blockwise(q, k, v, sight, scale=1.0)
    y = shard.ring_attention(q, k, v, sight, scale=1.0)
    np.testing.assert_array_equal(y, wanted)
    with shard.use(jd.mesh(data=8), RULES):
        y = shard.ring_attention(q, k, v, sight, scale=1.0)
    np.testing.assert_array_equal(y, wanted)


def test_what_cannot_be_split_is_refused():
    (q, k, v, _), _, _ = inputs(2)
    order = np.arange(SEQ)
    sight = Sight(order, order, causal=True)
    with shard.use(jd.mesh(sequence=8), RULES):

        def refused(words, kind=shard.ring_attention, size=SEQ, sight=sight, **options):
            cut = sight._replace(queries=order[:size], keys=order[:size])
            with pytest.raises(ValueError, match=words):
                jax.eval_shape(
                    lambda *a: kind(*a, cut, scale=1.0, **options),
                    *(x[:, :size] for x in (q, k, v)),
                )

        refused("multiple of 8 devices", size=SEQ - 1)
        refused("no score_bias", score_bias=jnp.zeros((1, 1, SEQ, SEQ)))
        refused("not a mask", sight=sight._replace(mask=jnp.ones((1, 1, 1, SEQ), bool)))
        refused("multiple of 8 kv_heads", kind=shard.all_to_all_attention)
        with pytest.raises(ValueError, match="without cache or memory"):
            shard.ring_attention(q[:, :8], k, v, sight, scale=1.0)
