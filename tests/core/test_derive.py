import jax
import jax.numpy as jnp
import optax

import jaxdl as jd
from jaxdl import nn

model = nn.Sequential(
    [nn.Embedding(7, 4), nn.Repeat(nn.Residual(nn.Linear(4, 4)), 2), nn.BatchNorm(4)]
)
params = model.init(jax.random.key(0))


def test_axes_name_every_dimension_of_every_parameter():
    axes = jd.axes(model)
    assert axes["0"]["embedding"] == ("vocab", "embed")
    assert axes["1"]["kernel"] == ("layers", None, None)
    for path, shape in jd.core.tree.flatten(jd.abstract(model)).items():
        part, name = path.split("/")
        assert len(axes[part][name]) == len(shape.shape)


def test_roles_and_paths_tell_weights_from_biases_scales_and_embeddings():
    assert jd.roles(model)["2"] == {"scale": "scale", "bias": "bias"}
    assert jd.paths(model, role="embedding") == ("0/embedding",)
    assert jd.paths(model, role=("bias", "scale")) == ("1/bias", "2/bias", "2/scale")
    assert len(jd.paths(model)) == 5


def test_a_mask_by_role_decays_neither_biases_nor_scales_though_they_are_stacked():
    mask = jd.mask(model, ("weight", "embedding"))
    decay = optax.add_decayed_weights(1.0, mask=mask)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = decay.update(zeros, decay.init(params), params)
    moved = jd.core.tree.flatten(
        jax.tree.map(lambda leaf: bool((leaf != 0).any()), updates)
    )
    assert {path for path, did in moved.items() if did} == {"0/embedding", "1/kernel"}


def test_state_is_declared_apart_from_params():
    assert set(jd.core.tree.flatten(jd.abstract_state(model))) == {"2/mean", "2/var"}
    assert jd.is_stateful(model) and not jd.is_stateful(nn.Linear(1, 1))
    assert not jd.is_stateful(jnp.tanh)


def test_declarations_come_in_the_order_they_were_made():
    deep = nn.Sequential([nn.Linear(1, 1, bias=False) for _ in range(12)])
    assert list(jd.declarations(deep)) == [f"{i}/kernel" for i in range(12)]


def test_the_summary_shows_every_array_and_the_totals():
    text = str(jd.summary(model))
    for word in ("0/embedding", "[7, 4]", "vocab, embed", "state", "76", "304 B"):
        assert word in text
    assert jd.count(params) == 76 and jd.nbytes(params) == 304


def test_the_summary_takes_any_pytree_and_a_model_of_any_size():
    assert "a/0" in str(jd.summary({"a": [jnp.ones((2, 3))]}))
    assert "400.0 TiB" not in str(jd.summary(nn.Linear(10**7, 10**7)))
    assert "363.8 TiB" in str(jd.summary(nn.Linear(10**7, 10**7)))


def test_the_summary_draws_in_a_notebook():
    assert "text/html" in jd.summary(model)._repr_mimebundle_()
