"""Any model over a mesh: the numbers of one device, from three libraries."""

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from examples import shard_anything
import jaxdl as jd
from jaxdl import shard
from jaxdl.core import tree

MESH = jd.mesh(fsdp=4, tensor=2)
ONE = jd.mesh(devices=jax.devices()[:1])


@pytest.mark.parametrize(
    "name", [pytest.param("jaxdl", marks=pytest.mark.slow), "flax", "by hand"]
)
def test_any_model_learns_over_a_mesh_as_on_one_device(name):
    example = shard_anything.EXAMPLES[name]()
    state, losses = shard_anything.train(example, MESH, shard.FSDP_TENSOR, steps=2)
    _, alone = shard_anything.train(example, ONE, shard.FSDP_TENSOR, steps=2)
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    kernels = [
        leaf.sharding.spec
        for leaf in jax.tree.leaves((state.params, state.opt_state))
        if leaf.ndim == 2
    ]
    up, down = P("fsdp", "tensor"), P("tensor", "fsdp")
    assert set(kernels) == {up, down}
    assert len(kernels) == 6
    assert tree.flatten(state.shardings.step) == {"": jax.NamedSharding(MESH, P())}
