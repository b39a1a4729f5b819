"""Published weights straight onto a mesh, by the rules that training uses."""

import jax
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import hub, shard
from jaxdl.hub.families.family import family_of

CONFIG = {
    "model_type": "gpt2", "vocab_size": 32, "n_positions": 8, "n_embd": 16,
    "n_layer": 2, "n_head": 2,
}  # fmt: skip


def test_each_device_is_given_its_part_of_published_weights(tmp_path, key):
    pytest.importorskip("safetensors")
    model = family_of(CONFIG).build(CONFIG)
    params = model.init(key)
    hub.save(tmp_path, model, params, CONFIG)
    mesh = jd.mesh(fsdp=4, tensor=2)
    loaded = hub.load(tmp_path, mesh, shard.FSDP_TENSOR)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    declared = shard.shardings(model, mesh, shard.FSDP_TENSOR)
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded.params) == declared
