import jax
import jax.numpy as jnp
import pytest

import jaxdl as jd
from jaxdl import losses, models, nn
from jaxdl.core.mark_primitive import Choice, mark
from jaxdl.planning.backends import Use

DIM = 8
x = jax.ShapeDtypeStruct((2, 6, DIM), jnp.float32)


def uses(function, *args, **options):
    return jd.which_backend(function, *args, **options).uses


def test_a_model_says_its_attention_by_path():
    config = models.DecoderConfig(
        vocab_size=16, dim=DIM, num_layers=2, num_heads=2, attention="auto"
    )
    model = models.Decoder(config)
    tokens = jax.ShapeDtypeStruct((1, 6), jnp.int32)

    def step(params, tokens):
        logits = model(params, tokens, key=None)
        return losses.cross_entropy(logits, tokens)

    found = jd.which_backend(
        jax.jit(jax.grad(step)), jd.abstract(model), tokens, platform="tpu"
    )
    attention, loss = found.uses
    assert attention == Use("attention", "blocks/attn", "splash")
    assert (loss.kind, loss.kernel) == ("loss", "plain")
    assert "chunked_cross_entropy" in loss.reason
    assert "blocks/attn" in str(found) and "Kernels on tpu" in str(found)
    assert found.kernels("attention") == {"splash"}


def test_experts_are_ragged_where_jax_has_such_a_product():
    moe = nn.MoE(DIM, 4, 4)
    params = jd.abstract(moe)
    on_tpu = uses(moe, params, x, platform="tpu")
    assert [use.path for use in on_tpu] == [
        "experts/gate",
        "experts/up",
        "experts/down",
    ]
    assert {use.kernel for use in on_tpu} == {"ragged_dot"}
    on_cpu = uses(jax.grad(lambda *a: moe(*a).sum()), params, x, platform="cpu")
    assert {use.kernel for use in on_cpu} == {"dense"}
    assert "no ragged product for cpu" in on_cpu[0].reason
    (use,) = uses(nn.MoE(DIM, 4, 4, dispatch="capacity"), params, x)
    assert (use.kind, use.kernel) == ("experts", "capacity")


def test_a_ragged_product_is_seen_in_any_function():
    def foreign(rows, kernels, sizes):
        with jax.named_scope("mixture"):
            return jax.lax.ragged_dot(rows, kernels, sizes)

    args = jnp.ones((4, 3)), jnp.ones((2, 3, 5)), jnp.array([1, 3])
    assert uses(foreign, *args, platform="tpu") == (
        Use("experts", "mixture", "ragged_dot"),
    )


def test_losses_say_whether_they_hold_all_the_logits():
    hidden, kernel = jnp.ones((4, DIM)), jnp.ones((DIM, 16))
    labels = jnp.zeros(4, jnp.int32)
    (use,) = uses(losses.chunked_cross_entropy, hidden, kernel, labels)
    assert use == Use("loss", "chunked_cross_entropy", "chunked")
    (use,) = uses(losses.token_cross_entropy, hidden @ kernel, labels)
    assert use.kernel == "plain"


def test_a_fallback_is_an_error_where_a_kernel_is_required():
    layer = nn.Attention(DIM, 2, causal=True, implementation="auto")
    params = jd.abstract(layer)
    uses(layer, params, x, platform="tpu", require="splash")
    with pytest.raises(ValueError, match="expected the kernel 'splash' on cpu, got"):
        uses(layer, params, x, platform="cpu", require="splash")
    with pytest.raises(ValueError, match="no loss in the program"):
        uses(layer, params, x, require={"loss": "chunked"})


def test_a_mark_changes_neither_the_program_nor_its_derivatives():
    def marked(x):
        return mark(jnp.sin(x), "loss", Choice("plain"))

    def without(x):
        return jnp.sin(x)

    x = jnp.arange(3.0)
    ours, plain = (jax.jit(each).lower(x).as_text() for each in (marked, without))
    assert ours.replace("jit_marked", "jit_without") == plain
    assert (jax.vmap(jax.grad(marked))(x) == jnp.cos(x)).all()
    assert uses(jax.vmap(marked), x) == (Use("loss", "", "plain"),)
    assert (jax.hessian(lambda x: marked(x).sum())(x) == jnp.diag(-jnp.sin(x))).all()
