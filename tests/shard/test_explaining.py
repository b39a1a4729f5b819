"""What explain says of arrays, before they exist and after, and what it finds amiss."""

import json

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import nn, shard

MESH = jd.mesh(data=2, fsdp=2, tensor=2)
MODEL = nn.FeedForward(6, 16)


def test_rows_say_where_an_array_would_be_and_what_that_costs():
    up = next(
        row
        for row in shard.explain(MODEL, MESH, shard.FSDP).rows
        if row.path == "up/kernel"
    )
    assert (up.axes, up.spec) == (("embed", "mlp"), P("fsdp"))
    assert (up.bytes, up.per_device, up.copies) == (6 * 16 * 4, 6 * 16 * 2, 4)
    assert up.extra == 6 * 16 * 2 * 3 // 4


def test_totals_are_those_of_the_rows_and_of_the_devices(key):
    params = shard.init(MODEL, key, MESH, shard.FSDP)
    found = shard.explain(params)
    assert found.bytes == jd.nbytes(params)
    device = jax.devices()[0]
    held = [
        part.data.nbytes
        for leaf in jax.tree.leaves(params)
        for part in leaf.addressable_shards
        if part.device == device
    ]
    assert found.per_device == sum(held)
    assert found.extra == sum(row.extra for row in found.rows)


def test_a_plan_and_what_was_made_of_it_are_the_same(key):
    params = shard.init(MODEL, key, MESH, shard.FSDP)
    plan = shard.explain(MODEL, MESH, shard.FSDP)
    assert shard.explain(params, axes=jd.axes(MODEL)).rows == plan.rows


def test_what_does_not_divide_is_found():
    model = nn.Linear(5, 4, axes=("embed", "mlp"))
    found = shard.explain(model, MESH, shard.FSDP).findings
    assert ("indivisible", "kernel") in [(f.kind, f.path) for f in found]
    assert "dimension 0 (embed, 5) is not a multiple of fsdp=2" in str(found)


def test_large_arrays_on_every_device_are_found():
    arrays = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
    found = shard.explain(arrays, MESH, shard.DATA).findings
    assert [(f.kind, f.path) for f in found if f.kind == "replicated"] == [
        ("replicated", "w")
    ]
    assert "4.0 MiB whole on each of 8 devices" in str(found)
    assert not [
        f
        for f in shard.explain(arrays, MESH, shard.DATA, large=2**23).findings
        if f.kind == "replicated"
    ]


def test_axes_that_split_nothing_are_found():
    def unused(rules):
        found = shard.explain(MODEL, MESH, rules).findings
        return [f.path for f in found if f.kind == "unused"]

    assert unused(shard.FSDP) == ["tensor"]
    assert unused(shard.FSDP_TENSOR) == []
    assert unused({}) == ["data", "fsdp", "tensor"]


def test_a_state_is_explained_with_its_keys_and_counters(key):
    import optax

    state = jd.train.TrainState.abstract(MODEL, optax.adam(1e-3), MESH, shard.FSDP)
    paths = [row.path for row in shard.explain(state).rows]
    assert "opt_state/0/mu/up/kernel" in paths
    assert "key" in paths


def test_the_explanation_is_a_value_and_a_table():
    found = shard.explain(MODEL, MESH, shard.FSDP)
    text = str(found)
    assert "up/kernel" in text
    assert "embed 6 /fsdp" in text
    assert "unused: tensor" in text
    assert json.loads(found.to_json())["rows"][0]["spec"] == [None, "fsdp"]


def test_arrays_without_a_mesh_are_refused():
    with pytest.raises(ValueError, match="expected an array on a mesh"):
        shard.explain({"w": jnp.zeros(2)})
    with pytest.raises(ValueError, match="w: expected an array with a sharding"):
        shard.explain({"w": np.zeros(2)})
