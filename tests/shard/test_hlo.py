"""The text of programs: what we compile here, and what other compilers write."""

import math

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from jaxdl.shard import hlo, hlo_text

SIZES = {"fsdp": 4, "tensor": 2}


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)


def talk(x, mesh):
    """One collective of each kind, each in a scope of its own name."""

    def each(x):
        def body(h, _):
            with jax.named_scope("loop/sum"):
                return jax.lax.psum(h, "tensor") * 0.5, None

        with jax.named_scope("gather"):
            x = x + jax.lax.all_gather(x, "fsdp", tiled=True).sum(0)
        x, _ = jax.lax.scan(body, x, length=3)
        with jax.named_scope("scatter"):
            x = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=1, tiled=True)
        with jax.named_scope("exchange"):
            x = jax.lax.all_to_all(x, "fsdp", 0, 1, tiled=True)
        with jax.named_scope("shift"):
            return jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)])

    return jax.shard_map(
        each, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"), check_vma=False
    )(x)


EXPECTED = {
    ("all-gather", ("fsdp",), 4, 1, 32 * 64 * 4, "gather"),
    ("all-reduce", ("tensor",), 2, 3, 8 * 64 * 4, "loop/sum"),
    ("reduce-scatter", ("fsdp",), 4, 1, 8 * 64 * 4, "scatter"),
    ("all-to-all", ("fsdp",), 4, 1, 8 * 16 * 4, "exchange"),
    ("collective-permute", ("fsdp",), 2, 1, 8 * 16 * 4, "shift"),
}


def facts(collective):
    kept = ("kind", "axes", "group", "count", "nbytes", "scope")
    return tuple(getattr(collective, name) for name in kept)


def test_collectives_are_those_that_were_written(mesh):
    x = jax.ShapeDtypeStruct((32, 64), jnp.float32)
    compiled = jax.jit(lambda x: talk(x, mesh)).lower(x).compile()
    found = hlo.collectives(compiled, mesh)
    assert {facts(each) for each in found} == EXPECTED
    assert len(found) == len(EXPECTED)
    assert all("test_hlo.py:" in each.source for each in found)


def test_an_array_on_one_device_talks_to_none():
    compiled = jax.jit(lambda x: x @ x).lower(jnp.ones((4, 4))).compile()
    assert hlo.collectives(compiled) == []


def collective(kind="all-reduce", group=4, count=3, nbytes=100):
    return hlo.Collective(kind, ("fsdp",), group, count, nbytes, "", "")


def test_traffic_is_what_a_ring_sends():
    assert collective("all-reduce").traffic == 2 * 300 * 3 / 4
    assert collective("all-gather").traffic == 300 * 3 / 4
    assert collective("collective-permute").traffic == 300


def program(entry, **computations):
    """The text of a program whose entry holds these lines."""
    parts = {**computations, "ENTRY": entry}
    text = ["HloModule m, is_scheduled=true", ""]
    for name, lines in parts.items():
        heading = "ENTRY %main ()" if name == "ENTRY" else f"%{name} ()"
        text += [f"{heading} -> f32[] {{", *("  " + line for line in lines), "}", ""]
    return "\n".join(text)


GPU_GATHER = """\
%all-gather-start = ((bf16[64,8]{1,0}, f32[2]{0}), (bf16[256,8]{1,0}, f32[8]{0})) \
all-gather-start(%a, %b), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), \
dimensions={0}, use_global_device_ids=true, \
metadata={op_name="jit(step)/jvp()/while/body/blocks/(attn/dot:mlp/dot)"}"""
GPU_DONE = """\
%all-gather-done = (bf16[256,8]{1,0}, f32[8]{0}) all-gather-done(%all-gather-start)"""


def test_a_start_and_its_done_are_one():
    (found,) = hlo.collectives(program([GPU_GATHER, GPU_DONE]), SIZES)
    expected = ("all-gather", ("fsdp",), 4, 1, 256 * 8 * 2 + 32, "blocks/attn")
    assert facts(found) == expected


TPU_FUSED = {
    "async.1": [
        "%all-gather.1 = bf16[256]{0:T(256)} all-gather(%p), channel_id=7, "
        "replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}"
    ],
    "async.2": [
        "%all-gather.9 = bf16[256]{0:T(256)S(1)} all-gather(%p), channel_id=7, "
        "replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}"
    ],
    "all-reduce-scatter.3": [
        "%all-reduce.3 = bf16[8,16]{1,0} all-reduce(%p), channel_id=8, "
        "replica_groups=[4,2]<=[8], to_apply=%add"
    ],
    "condition": [
        "%bound = s32[]{:T(128)} constant(5)",
        "%i = s32[]{:T(128)} get-tuple-element(%p), index=0",
        "ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT",
    ],
    "body": [
        "%start = bf16[4]{0} fusion(%p), kind=kCustom, calls=%async.1",
        "%done = bf16[4]{0} fusion(%start), kind=kCustom, calls=%async.2",
        "%scatter = bf16[2,16]{1,0} fusion(%p), kind=kCustom, "
        'calls=%all-reduce-scatter.3, metadata={op_name="jit(f)/jvp(head)/dot"}',
    ],
}
TPU_WHILE = "%while.1 = (s32[]) while(%t), condition=%condition, body=%body"


def test_a_tpu_loop_counts_by_its_condition_and_its_fusions_once():
    found = hlo.collectives(program([TPU_WHILE], **TPU_FUSED), SIZES)
    assert [facts(each) for each in found] == [
        ("all-gather", ("fsdp",), 4, 5, 512, ""),
        ("reduce-scatter", ("tensor",), 2, 5, 256, "head"),
    ]


def test_a_loop_of_unknown_length_is_named_and_counts_once():
    computations = {**TPU_FUSED, "condition": ["ROOT %c = pred[] parameter(0)"]}
    text = program([TPU_WHILE], **computations)
    assert hlo.parse(text).unknown_loops == ("while.1",)
    assert {each.count for each in hlo.collectives(text, SIZES)} == {1}


def test_a_known_trip_count_comes_first():
    known = TPU_WHILE + ', backend_config={"known_trip_count":{"n":"3"}}'
    found = hlo.collectives(program([known], **TPU_FUSED), SIZES)
    assert {each.count for each in found} == {3}


def groups(written):
    text = program([f"%r = f32[2]{{0}} all-reduce(%a), {written}, to_apply=%add"])
    (entry,) = hlo.parse(text).computations.values()
    return hlo.replica_groups(entry.instructions[0])


def test_groups_are_read_as_lists_and_as_axes():
    lists = groups("replica_groups={{0,1},{2,3}}")
    assert lists == ((0, 1), (2, 3))
    assert groups("replica_groups=mesh['x'=2,'y'=2] {'y'}") == lists
    assert groups("replica_groups=mesh['x'=2,'y'=2] {'x','y'}") == ((0, 1, 2, 3),)
    assert groups("replica_groups=mesh['x'=4] {'x':(2)2}") is None
    assert groups("channel_id=3") is None


@given(st.data())
def test_groups_are_read_as_numpy_transposes(data):
    dims = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    order = data.draw(st.permutations(range(len(dims))))
    total = math.prod(dims)
    width = data.draw(st.sampled_from([n for n in range(1, 65) if total % n == 0]))
    written = ",".join(map(str, dims)), ",".join(map(str, order))
    got = groups(
        f"replica_groups=[{total // width},{width}]<=[{written[0]}]T({written[1]})"
    )
    expected = np.arange(total).reshape(dims).transpose(order).reshape(-1, width)
    np.testing.assert_array_equal(got, expected)


def test_axes_are_those_along_which_a_group_differs():
    sizes = {"data": 2, "fsdp": 1, "tensor": 4}
    assert hlo.varying_axes(((0, 4), (1, 5)), sizes) == ("data",)
    assert hlo.varying_axes(((0, 1, 4, 5),), sizes) == ("data", "tensor")
    assert hlo.varying_axes(None, sizes) == ()
    assert hlo.varying_axes(((0, 9),), sizes) == (), "devices that are not of the mesh"


def test_shapes_are_read_with_their_tiles():
    (entry,) = hlo.parse(
        program(["%t = (bf16[3,200]{1,0:T(8,128)(2,1)S(1)}, (s4[3]{0}, pred[])) f(%a)"])
    ).computations.values()
    shape = entry.instructions[0].shape
    first, *rest = hlo_text.leaves(shape)
    assert (first.nbytes, first.padded, first.space) == (1200, 8 * 256 * 2, 1)
    assert [leaf.nbytes for leaf in rest] == [2, 1]
    assert hlo_text.nbytes(shape) == 1203


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("module @jit_f {}")


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("jit(step)/transpose(jvp(head))/dot_general", "head"),
        (
            "jit(f)/jvp()/while/body/closed_call/checkpoint/blocks/attn/dot",
            "blocks/attn",
        ),
        ("jit(f)/jvp(jit(log_softmax))/reduce_max", ""),
        ("jit(f)/blocks/vmap(transpose(jvp(experts)))/up/dot", "blocks/experts/up"),
        ("add", ""),
    ],
)
def test_a_scope_is_without_the_parts_of_jax(name, scope):
    assert hlo_text.scope_of(name) == scope
