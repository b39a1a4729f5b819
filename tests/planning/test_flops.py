import math

from hypothesis import given
from hypothesis import strategies as st
import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import optax
import pytest

import jaxdl as jd
from jaxdl.hub.families.family import family_of
from jaxdl.planning.flops import count_flops
from jaxdl.train import TrainState, make_step


def array(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


X, W = array(8, 16), array(16, 4)
STACK = array(3, 16, 16)
ROWS = array(3, dtype="int32")


def scanned(x, stack):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, stack)[0]


def repeated(x, times):
    return jax.lax.fori_loop(0, times, lambda _, h: h @ h.T @ h, x)


@jax.custom_vjp
def squared(x):
    return x @ x.T


squared.defvjp(lambda x: (x @ x.T, x), lambda x, ct: ((ct + ct.T) @ x,))

BY_HAND = {
    "matrix": (lambda x, w: x @ w, (X, W), 2 * 8 * 16 * 4),
    "vector": (lambda x: x[0] @ x[1], (X,), 2 * 16),
    "batched": (
        lambda a, b: jnp.einsum("bij,bjk->bik", a, b),
        (array(5, 2, 3), array(5, 3, 4)),
        2 * 5 * 2 * 3 * 4,
    ),
    "jitted": (jax.jit(lambda x, w: x @ w), (X, W), 2 * 8 * 16 * 4),
    "gradient": (
        jax.grad(lambda w, x: jnp.sum((x @ w) ** 2)),
        (W, X),
        2 * 2 * 8 * 16 * 4,
    ),
    "both gradients": (
        jax.grad(lambda w, x: jnp.sum((x @ w) ** 2), (0, 1)),
        (W, X),
        3 * 2 * 8 * 16 * 4,
    ),
    "scan": (scanned, (X, STACK), 3 * 2 * 8 * 16 * 16),
    "fori": (lambda x: repeated(x, 5), (X,), 5 * 2 * 2 * 8 * 8 * 16),
    "nested": (
        lambda x, s: jax.lax.scan(lambda h, _: (scanned(h, s), None), x, length=7)[0],
        (X, STACK),
        7 * 3 * 2 * 8 * 16 * 16,
    ),
    "cond": (
        lambda x: jax.lax.cond(x.sum() > 0, lambda: x @ x.T, lambda: x @ x.T @ x @ x.T),
        (X,),
        3 * 2 * 8 * 8 * 16,
    ),
    "custom gradient": (
        jax.grad(lambda x: squared(x).sum()),
        (X,),
        2 * 2 * 8 * 8 * 16,
    ),
    "vmap": (jax.vmap(lambda x, w: x @ w), (array(6, 8, 16), array(6, 16, 4)), 6144),
    "convolution": (
        lambda x, k: jax.lax.conv(x, k, (1, 1), "VALID"),
        (array(2, 3, 8, 8), array(5, 3, 3, 3)),
        2 * 2 * 5 * 3 * 9 * 36,
    ),
    "same padding": (
        # At the border the kernel meets 2 of its 3 places.
        lambda x, k: jax.lax.conv(x, k, (1,), "SAME"),
        (array(1, 1, 8), array(1, 1, 3)),
        2 * (8 * 3 - 2),
    ),
    "ragged": (
        lambda x, w, n: jax.lax.ragged_dot(x, w, n),
        (X, STACK, ROWS),
        2 * 8 * 16 * 16,
    ),
    "ragged gradient": (
        jax.grad(lambda w, x, n: jnp.sum(jax.lax.ragged_dot(x, w, n) ** 2), (0, 1)),
        (STACK, X, ROWS),
        3 * 2 * 8 * 16 * 16,
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_small_programs_are_counted_as_by_hand(name):
    function, args, expected = BY_HAND[name]
    flops = count_flops(function, *args)
    assert flops.model == flops.hardware == expected


def test_a_shard_map_counts_on_every_device():
    mesh = jax.make_mesh(
        (4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    each = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(P("a"), P()), out_specs=P("a")
    )
    # Over "b" both devices compute the same.
    assert count_flops(each, X, W).model == 2 * (2 * 8 * 16 * 4)


def test_what_is_recomputed_is_hardware_only():
    def loss(stack, x, policy):
        @jax.checkpoint
        def body(h, w):
            return jnp.tanh(jnp.tanh(h @ w) @ w), None

        return jnp.sum(jax.lax.scan(policy(body), x, stack)[0] ** 2)

    gradient = jax.grad(loss, (0, 1))
    product = 3 * 2 * 8 * 16 * 16
    flops = count_flops(lambda s, x: gradient(s, x, lambda f: f), STACK, X)
    assert (flops.model, flops.hardware) == (6 * product, 8 * product)


def test_a_saved_product_is_not_recomputed():
    def loss(w, x, policy):
        body = jax.checkpoint(lambda w: jnp.sum(jnp.tanh(x @ w) ** 2), policy=policy)
        return body(w)

    gradient = jax.value_and_grad(loss)
    save = jax.checkpoint_policies.everything_saveable
    nothing = jax.checkpoint_policies.nothing_saveable
    product = 2 * 8 * 16 * 4
    for policy, expected in ((save, 2 * product), (nothing, 3 * product)):
        flops = count_flops(lambda w, x, p=policy: gradient(w, x, p), W, X)
        assert (flops.model, flops.hardware) == (2 * product, expected)


def test_a_while_loop_needs_its_number():
    def loop(x):
        with jax.named_scope("solve"):
            return jax.lax.while_loop(lambda h: h.sum() < 3, lambda h: h @ h.T @ h, x)

    with pytest.raises(ValueError, match=r"solve/while.*trips=\{'solve/while': 10\}"):
        count_flops(loop, X)
    each = 2 * 2 * 8 * 8 * 16
    assert count_flops(loop, X, trips=4).model == 4 * each
    assert count_flops(loop, X, trips={"solve/while": 6}).model == 6 * each


def test_two_loops_of_one_name_are_told_apart():
    def loops(x):
        for _ in range(2):
            x = jax.lax.while_loop(lambda h: h.sum() < 3, lambda h: h @ h.T @ h, x)
        return x

    flops = count_flops(loops, X, trips={"while": 1, "while@1": 10})
    assert flops.model == 11 * 2 * 2 * 8 * 8 * 16


def test_elements_are_counted_apart():
    def function(x):
        return jnp.sum(jnp.exp(x) * x) + jnp.int32(3) * 2

    # exp and the product of each element, the sum's reading, and the last addition.
    assert count_flops(function, X).elementwise == 3 * 128 + 1
    assert count_flops(function, X).hardware == 0


def test_what_cannot_be_counted_is_named():
    assert count_flops(jnp.linalg.cholesky, array(4, 4)).opaque == ("cholesky",)


def kernel(estimate):
    block = pl.BlockSpec((1, 4, 4), lambda i: (i, 0, 0))
    return pl.pallas_call(
        lambda x, y: y.__setitem__(0, x[0] @ x[0]), grid=(6,), in_specs=[block],
        out_specs=block, out_shape=array(6, 4, 4), cost_estimate=estimate,
    )  # fmt: skip


def test_a_kernel_counts_by_its_estimate_or_its_grid():
    assert count_flops(kernel(None), array(6, 4, 4)).model == 6 * 2 * 4**3
    estimate = pl.CostEstimate(flops=77, transcendentals=0, bytes_accessed=0)
    assert count_flops(kernel(estimate), array(6, 4, 4)).model == 77


@given(
    size=st.integers(3, 9), width=st.integers(1, 3), stride=st.integers(1, 3),
    holes=st.integers(1, 3), spread=st.integers(1, 2),
    low=st.integers(0, 3), high=st.integers(0, 3), groups=st.sampled_from([1, 2]),
)  # fmt: skip
def test_convolutions_are_counted_as_xla_counts_them(
    size, width, stride, holes, spread, low, high, groups
):
    def function(x, k):
        return jax.lax.conv_general_dilated(
            x, k, (stride, 1), [(low, high), (0, 0)], (holes, 1), (1, spread),
            feature_group_count=groups,
        )  # fmt: skip

    x, k = array(2, 4, size, 7), array(6, 4 // groups, width, 2)
    cost = jax.jit(function).lower(x, k).cost_analysis()
    assert count_flops(function, x, k).model == cost.get("flops", 0)


SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}
DECODERS = {
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 64},
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"head_dim": 12},
    "smollm3": {"no_rope_layers": [1, 1, 0, 1], "tie_word_embeddings": True},
    "gemma": {"head_dim": 12},
    "gemma2": {
        "head_dim": 12, "sliding_window": 8, "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 0.8, "final_logit_softcapping": 1.5,
    },
    "phi3": {"sliding_window": 8},
    "olmo2": {},
    "mixtral": {**EXPERTS, "num_local_experts": 5},
    "qwen3_moe": {**EXPERTS, "num_experts": 5, "mlp_only_layers": [1]},
    "gpt_oss": {
        **EXPERTS, "num_local_experts": 5, "head_dim": 12, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "mamba": {"time_step_rank": 5, "state_size": 6},
    "deepseek_v3": {
        **EXPERTS, "n_routed_experts": 8, "n_group": 4, "topk_group": 2,
        "first_k_dense_replace": 1, "n_shared_experts": 2, "q_lora_rank": 16,
        "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6,
        "v_head_dim": 10, "num_key_value_heads": 4,
    },
}  # fmt: skip
LARGE = {
    "Llama 3 8B": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 8192,
    },
    "Qwen3 30B-A3B": {
        "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048,
        "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "max_position_embeddings": 40960,
        "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
    },
}  # fmt: skip


def analytic(model, config, batch, seq):
    """6ND of the matrices that a token passes through, and attention in full."""
    leaves = jd.tree.flatten(jd.abstract(model))
    kernels = {path: leaf for path, leaf in leaves.items() if path.endswith("kernel")}
    if model.head is None:
        kernels["head"] = leaves["embed/embedding"]
    number = 0
    for path, leaf in kernels.items():
        active = 1.0
        if "/experts/" in path:
            active = config["num_experts_per_tok"] / leaf.shape[-3]
        number += active * math.prod(leaf.shape)
    widths = 2 * model.config.width
    if config["model_type"] == "deepseek_v3":
        widths = sum(config[f"{part}_head_dim"] for part in ("qk_rope", "qk_nope", "v"))
    heads = model.config.num_heads * (config["model_type"] != "mamba")
    attention = 6 * batch * seq**2 * heads * widths * model.config.num_layers
    return 6 * number * batch * seq + attention


def loss_of(model):
    def loss(params, tokens):
        logits = model(params, tokens[:, :-1], key=None)
        return jd.losses.cross_entropy(logits, tokens[:, 1:])

    return loss


def agreement(config, batch, seq):
    model = family_of(config).build(config)
    tokens = array(batch, seq + 1, dtype="int32")
    gradient = jax.value_and_grad(loss_of(model))
    flops = count_flops(gradient, jd.abstract(model), tokens)
    assert not flops.opaque
    return flops.model / analytic(model, config, batch, seq)


@pytest.mark.parametrize("family", DECODERS)
def test_the_gradient_of_every_family_is_6nd_and_attention(family):
    config = {**SIZES, "model_type": family, **DECODERS[family]}
    assert agreement(config, 2, 16) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", LARGE)
def test_the_gradient_of_a_published_size_is_6nd_and_attention(name):
    assert agreement(LARGE[name], 4, 4096) == pytest.approx(1, abs=0.005)


def test_a_train_step_adds_no_product_to_the_gradient():
    model = family_of(LARGE["Llama 3 8B"]).build(LARGE["Llama 3 8B"])
    params, tokens = jd.abstract(model), array(4, 513, dtype="int32")
    optimizer = optax.adamw(1e-3)
    state = jax.eval_shape(
        lambda p: TrainState.create(p, optimizer, key=jax.random.key(0)), params
    )
    step = count_flops(make_step(loss_of(model), optimizer), state, tokens)
    gradient = count_flops(jax.value_and_grad(loss_of(model)), params, tokens)
    assert step.model == gradient.model
