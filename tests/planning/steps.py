"""One small training step, for every test that plans."""

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

LAYERS, WIDTH, HIDDEN, BATCH = 3, 64, 128, 32
SIZES = {"fsdp": 4, "tensor": 2}


def mesh_of(devices=None, sizes=SIZES):
    """A mesh of these devices, or an abstract one."""
    shape, names = tuple(sizes.values()), tuple(sizes)
    types = (AxisType.Auto,) * len(sizes)
    if devices is None:
        return AbstractMesh(shape, names, axis_types=types)
    return jax.make_mesh(shape, names, axis_types=types, devices=devices)


def step_on(mesh, scale=1):
    """A jitted step on a mesh (None: one device), and its abstract arguments.

    scale: multiplies every size but the number of layers.
    """
    batch, width, hidden = (scale * size for size in (BATCH, WIDTH, HIDDEN))

    def spec(*axes):
        return None if mesh is None else NamedSharding(mesh, P(*axes))

    def array(shape, *axes):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=spec(*axes))

    params = {
        "up": array((LAYERS, width, hidden), None, "fsdp", "tensor"),
        "down": array((LAYERS, hidden, width), None, "tensor", "fsdp"),
    }
    state = {"params": params, "momentum": params}

    def loss(params, batch):
        @jax.checkpoint
        def block(h, w):
            with jax.named_scope("block"):
                h = h + jnp.tanh(h @ w["up"]) @ w["down"]
            return h if mesh is None else jax.lax.with_sharding_constraint(
                h, spec("fsdp")
            ), None  # fmt: skip

        hidden, _ = jax.lax.scan(block, batch, params)
        return jnp.mean(hidden**2)

    def step(state, batch):
        value, grads = jax.value_and_grad(loss)(state["params"], batch)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, state["momentum"], grads)
        params = jax.tree.map(lambda p, m: p - 1e-2 * m, state["params"], momentum)
        return {"params": params, "momentum": momentum}, value

    kept = jax.tree.map(lambda leaf: leaf.sharding, state)
    out = {} if mesh is None else {"out_shardings": (kept, None)}
    return jax.jit(step, donate_argnums=0, **out), (
        state,
        array((batch, width), "fsdp"),
    )


STATE_BYTES = 2 * 2 * LAYERS * WIDTH * HIDDEN * 4
PRODUCT = 2 * BATCH * WIDTH * HIDDEN
