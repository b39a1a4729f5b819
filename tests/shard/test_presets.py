"""Each preset: the single-device step over 8 devices, by the expected collectives."""

from collections import Counter
import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax
import pytest

import jaxdl as jd
from jaxdl import nn, shard
from jaxdl.models.decoder import Decoder, DecoderConfig, Layer

ROPE = nn.RoPE(8)
CONFIG = DecoderConfig(
    vocab_size=64, seq_len=16, dim=32, num_layers=2, num_heads=4, num_kv_heads=2,
    hidden=64, positions="rope", norm="rms", gated=True, bias=False,
)  # fmt: skip
EXPERTS = Layer(ROPE, mlp=nn.MoE(32, 16, num_experts=4, dispatch="dense"))
DENSE = Decoder(CONFIG)
SPARSE = Decoder(dataclasses.replace(CONFIG, layers=(EXPERTS,) * 2))
TOKENS = np.random.default_rng(0).integers(0, 64, (8, 17), np.int32)
OPTIMIZER = optax.adamw(1e-3, b1=0.9)

# Bytes: of the blocks, the kernels in them and the rest, the table and the last norm;
# of the residual stream of an eighth of the tokens.
BLOCKS = jd.nbytes(jd.abstract(DENSE)["blocks"])
KERNELS, SCALES = 2 * 4 * (3 * 32 * 64 + 2 * 32 * 32 + 2 * 32 * 16), 2 * 2 * 4 * 32
TABLE, NORM, STREAM = 4 * 64 * 32, 4 * 32, 4 * 16 * 32
KEYS = 2 * 2 * 4 * (4 * 16 * 16)  # and values, of both layers, for half of the rows


@dataclasses.dataclass(frozen=True)
class Case:
    """A mesh, rules, and for each kind of collective and axes: its runs and bytes."""

    sizes: dict[str, int]
    rules: Any
    expected: dict[tuple[str, str], tuple[int, int]]
    model: Decoder = DENSE


# XLA's CPU compiler writes a reduce-scatter as an all-reduce and a slice. What stands
# last in a sum is small: loss, norms of gradients, tokens and masks of the embedding.
CASES = {
    # Gradients; the table, tied, has two.
    "DATA": Case({"data": 8}, shard.DATA, {
        ("all-reduce", "data"): (3, BLOCKS + 2 * TABLE + NORM + 4),
    }),
    # What the optimizer changed goes to all. The stream's gradient, an all-to-all away,
    # makes each device's part of the table's gradient.
    "ZERO1": Case({"data": 8}, shard.ZERO1, {
        ("all-reduce", "data"): (5, BLOCKS + TABLE + NORM + 4 + 44),
        ("all-gather", "data"): (12, BLOCKS + TABLE + NORM + 512),
        ("all-to-all", "data"): (1, STREAM),
    }),
    # Every kernel is gathered forwards and backwards, the table only as the head.
    "FSDP": Case({"fsdp": 8}, shard.FSDP, {
        ("all-gather", "fsdp"): (41, 2 * BLOCKS + TABLE + 2 * NORM + 512 + 128),
        ("all-reduce", "fsdp"): (5, BLOCKS + TABLE + NORM + 4 + 44),
        ("all-to-all", "fsdp"): (2, 2 * STREAM),
    }),
    # The same in each half; then halves exchange their quarters of the gradients.
    "DATA_FSDP": Case({"data": 2, "fsdp": 4}, shard.FSDP, {
        ("all-gather", "fsdp"): (41, 2 * BLOCKS + TABLE + 2 * NORM + 256 + 64),
        ("all-reduce", "fsdp"): (4, KERNELS + TABLE + 4 + 40),
        ("all-reduce", "data"): (3, (KERNELS + 2 * TABLE) // 4),
        ("all-reduce", "data+fsdp"): (3, SCALES + NORM + 4),
        ("all-to-all", "fsdp"): (2, 2 * STREAM),
    }),
    # Megatron: each layer's result is summed over `tensor`, and each gradient of what a
    # projection reads: 2 + 5 in a block, 1 of the table and 1 of the head.
    "FSDP_TENSOR": Case({"fsdp": 4, "tensor": 2}, shard.FSDP_TENSOR, {
        ("all-gather", "fsdp"): (
            41, 2 * (KERNELS // 2 + SCALES) + TABLE // 2 + 2 * NORM + 256 + 128
        ),
        ("all-reduce", "fsdp"): (5, KERNELS // 2 + SCALES + TABLE // 2 + NORM + 4 + 44),
        ("all-reduce", "tensor"): (
            15, (2 * 7 + 2) * 2 * STREAM + TABLE // 4 + 2 * 128 + 160
        ),
        ("all-to-all", "fsdp"): (2, 2 * 2 * STREAM),
        ("all-gather", "tensor"): (1, 512),
        ("collective-permute", "fsdp+tensor"): (1, 128),
    }),
    # Keys and values of the whole sequence to each, their gradients back.
    "SEQUENCE": Case({"fsdp": 2, "sequence": 4}, shard.FSDP | shard.SEQUENCE, {
        ("all-gather", "fsdp"): (41, 2 * BLOCKS + 2 * TABLE + 2 * NORM + 32),
        ("all-reduce", "fsdp"): (6, BLOCKS + 2 * TABLE + NORM + 4 + 44),
        ("all-gather", "sequence"): (6, KEYS + 128),
        ("all-reduce", "sequence"): (
            7, KEYS + KERNELS // 2 + SCALES + TABLE * 3 // 2 + NORM + 4
        ),
        ("all-to-all", "fsdp"): (4, 4 * STREAM),
        ("collective-permute", "sequence"): (2, 80),
    }),
    # Of every token the stream and the weights to the experts and back, both ways.
    "EXPERT": Case({"fsdp": 2, "expert": 4}, shard.FSDP | shard.EXPERT, {
        ("all-gather", ""): (51, 130_336),
        ("all-reduce", ""): (13, 88_256),
        ("all-to-all", ""): (10, 41_472),
        ("collective-permute", ""): (5, 8_208),
    }, SPARSE),
}  # fmt: skip


def loss(model, params, batch):
    logits = model(params, batch[:, :-1], key=None)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:])
    return each.mean()


@functools.cache
def alone(model):
    """The state of step 0 on the host, and the single-device loss and gradients."""
    state = jd.train.TrainState.create(
        jax.jit(model.init)(jax.random.key(0)), OPTIMIZER, key=jax.random.key(1)
    )
    found = jax.jit(jax.value_and_grad(functools.partial(loss, model)))
    value, grads = found(state.params, TOKENS)
    return jax.device_get(state.replace(key=None)), value, jax.device_get(grads)


def compiled(case):
    """The step for a case, compiled, with the state and batch that it takes."""
    mesh = jd.mesh(**case.sizes)
    abstract = jd.train.TrainState.abstract(case.model, OPTIMIZER, mesh, case.rules)
    on_mesh = shard.use(mesh, case.rules)(functools.partial(loss, case.model))
    step = jd.train.make_step(on_mesh, OPTIMIZER, shardings=abstract.shardings)
    state = alone(case.model)[0].replace(key=jax.random.key(1))
    state = jax.device_put(state, abstract.shardings)
    batch = shard.place(TOKENS, mesh, case.rules, axes=("batch",))
    return step.lower(state, batch).compile(), state, batch


def check_step(step, state, batch, model):
    _, value, grads = alone(model)
    declared = state.shardings
    new, metrics = step(state, batch)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    # Adam's first average of the gradients is a tenth of them.
    found = jax.tree.map(lambda mu: np.asarray(mu) * 10, new.opt_state[0].mu)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found,
        grads,
    )
    assert new.shardings == declared


def test_a_step_over_a_mesh_is_that_of_one_device():
    check_step(*compiled(CASES["FSDP_TENSOR"]), DENSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_step_communicates_what_is_expected_and_nothing_else(name, optimized):
    case = CASES[name]
    step, state, batch = compiled(case)
    runs, total = Counter(), Counter()
    for each in shard.collectives(step, jd.mesh(**case.sizes)):
        # Experts' rows go along axes in an order that some versions do not name.
        axes = "" if name == "EXPERT" else "+".join(each.axes)
        runs[each.kind, axes] += each.count
        total[each.kind, axes] += each.total
    found = {key: (runs[key], total[key]) for key in runs}
    assert found == case.expected
    check_step(step, state, batch, case.model)
