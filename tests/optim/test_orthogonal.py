import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers
import pytest

import jaxdl as jd
from jaxdl import models, nn, optim
from jaxdl.core import tree
from jaxdl.shard import hlo

rng = np.random.default_rng(0)


def draw(shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def gradients(params, steps):
    return jax.tree.map(lambda p: draw((steps, *p.shape)), params)


def run(optimizer, params, steps):
    """The updates of a few gradients, which are stacked in front, as one program."""

    @jax.jit
    def all_steps(params, steps):
        def step(state, grads):
            updates, state = optimizer.update(grads, state, params)
            return state, updates

        return jax.lax.scan(step, optimizer.init(params), steps)[1]

    return all_steps(params, steps)


@pytest.mark.parametrize("consistent_rms", [0.2, None])
def test_matrices_move_as_under_optax_and_the_rest_by_adamw(consistent_rms):
    params = {"tall": draw((6, 4)), "wide": draw((4, 6)), "bias": draw(4)}
    steps = gradients(params, 2)
    same = {"consistent_rms": consistent_rms, "weight_decay": 0.2, "ns_steps": 1}
    ours = run(optim.muon(0.1, **same), params, steps)
    theirs = run(optax.contrib.muon(0.1, **same), params, steps)
    adamw = run(optax.adamw(0.1, b2=0.95, weight_decay=0.0), params, steps)
    theirs["bias"] = adamw["bias"]
    chex.assert_trees_all_close(ours, theirs, atol=1e-6)


def test_stacked_layers_and_experts_are_orthogonal_each_on_its_own():
    model = nn.Repeat(nn.MoE(4, 6, num_experts=3), 2)
    params = jax.tree.map(lambda x: draw(x.shape), jd.abstract(model))
    optimizer = optim.scale_by_muon(
        {"experts/*/kernel": MuonDimensionNumbers(2, 3)}, nesterov=False
    )
    kernels = {"experts": params["experts"]}
    updates = run(optimizer, kernels, gradients(kernels, 1))
    for path, update in tree.flatten(updates).items():
        values = np.linalg.svd(update[0], compute_uv=False)
        assert values.shape == (2, 3, 4), path
        assert (values > 0.6).all() and (values < 1.3).all()
    by_declaration = run(optim.muon(1.0, model), params, gradients(params, 1))
    update = by_declaration["experts"]["up"]["kernel"][0] / (0.2 * 6**0.5)
    assert (np.linalg.svd(update, compute_uv=False) > 0.6).all()


def test_weights_are_muons_and_the_rest_is_adamws():
    config = models.DecoderConfig(
        vocab_size=32, seq_len=8, dim=8, num_layers=2, num_heads=2,
        tie_embeddings=False,
    )  # fmt: skip
    model = models.Decoder(config)
    labels = tree.flatten(_state_labels(optim.muon(1e-3, model), model))
    roles = tree.flatten(jd.roles(model))
    for path, label in labels.items():
        hidden = roles[path] == "weight" and path != "head/kernel"
        assert label == ("muon" if hidden else "rest"), path
    excluded = optim.muon(1e-3, model, exclude="blocks/attn/**")
    labels = tree.flatten(_state_labels(excluded, model))
    assert labels["blocks/attn/q/kernel"] == "rest"
    assert labels["blocks/mlp/up/kernel"] == "muon"
    with pytest.raises(ValueError, match=r"'lm_head/\*\*' fits no path"):
        optim.muon(1e-3, model, exclude="lm_head/**").init(jd.abstract(model))


def _state_labels(optimizer, model):
    """Which part of a partition keeps a momentum of each parameter."""
    state = jax.eval_shape(optimizer.init, jd.abstract(model))
    found = {}
    for path in tree.flatten(state):
        name, _, rest = path.removeprefix("inner_states/").partition("/")
        if "/mu/" in rest:
            found[rest.split("/mu/")[1]] = name
    return found


def test_on_a_mesh_the_updates_are_those_of_one_device(optimized):
    """Layers are spread, a matrix that is alone is split, and the rest is AdamW's."""
    mesh = jd.mesh(fsdp=4, tensor=2)
    block = [nn.Linear(16, 48, axes=("embed", "mlp"))]
    block += [nn.Linear(48, 16, False, ("mlp", "embed"))]
    alone = nn.Linear(16, 64, False, ("embed", "mlp"))
    model = nn.Sequential([nn.Repeat(nn.Sequential(block), 4), alone])
    placed = jd.shard.shardings(model, mesh, jd.shard.FSDP_TENSOR)
    params, grads = (
        jax.tree.map(lambda x: draw(x.shape), jd.abstract(model)) for _ in range(2)
    )
    one, spread = (
        optim.muon(1.0, model, mesh=m, ns_steps=2, nesterov=False) for m in (None, mesh)
    )
    follow = jd.shard.optimizer_state(spread, params, placed)
    momentum = follow.inner_states["muon"].inner_state[0][0].mu
    assert momentum["0"]["0"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")

    given = grads, jax.jit(one.init)(params), params
    whole = jax.jit(one.update).lower(*given).compile()
    places = placed, follow, placed
    split = jax.jit(spread.update, in_shardings=places, out_shardings=places[:2])
    split = split.lower(*given).compile()
    expected, _ = whole(*given)
    updates, _ = split(*jax.device_put(given, places))
    chex.assert_trees_all_close(updates, expected, atol=1e-5)

    # Of the 8 matrices each device has one. Of the one that is alone each makes an
    # eighth, and repeats but a product of [rows, rows] by itself.
    assert split.cost_analysis()["flops"] < 0.2 * whole.cost_analysis()["flops"]
    # They come along each axis of the mesh and go back, a matrix for each device.
    large = [c for c in hlo.collectives(split, mesh) if c.nbytes >= 16 * 48 * 4]
    assert [c.kind for c in large] == ["all-to-all"] * 4


def test_options_that_optax_lacks_are_errors():
    with pytest.raises(TypeError, match="ns_step"):
        optim.muon(1e-3, ns_step=3)
