import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdl as jd
from jaxdl import models, nn, optim

WIDTHS = (64, 256)
BASE = 8
RATES = {"adam": (optax.adam, 0.01), "sgd": (optax.sgd, 0.1)}


class Tapped(jd.Module):
    """An input, a hidden and an output layer."""

    width: jd.Size

    @property
    def parts(self):
        return {
            "first": nn.Linear(8, self.width),
            "second": nn.Linear(self.width, self.width),
            "last": nn.Linear(self.width, 4),
        }

    def spec(self):
        return self.parts

    def __call__(self, params, x):
        for name, layer in self.parts.items():
            x = jd.tap(layer(params[name], x), name)
            x = x if name == "last" else jax.nn.relu(x)
        return x


@functools.cache
def check(name, parametrisation):
    make, rate = RATES[name]
    x = jax.random.normal(jax.random.key(1), (16, 8))
    y = jax.random.normal(jax.random.key(2), (16, 4))

    def build(width):
        model = Tapped(width)
        params, optimizer = model.init(jax.random.key(0)), make(rate)
        if parametrisation == "mup":
            mu = optim.mup(model, Tapped(BASE))
            params = mu.init(jax.random.key(0))
            factors = {"adam": mu.adam, "sgd": mu.sgd}[name]
            optimizer = optax.chain(optimizer, optim.scale_by_path(factors))
        return lambda p: jnp.mean((model(p, x) - y) ** 2), params, optimizer

    return optim.coordinate_check(build, WIDTHS, steps=3)


@pytest.mark.parametrize("name", RATES)
def test_under_mup_activations_change_alike_at_every_width(name):
    slopes = check(name, "mup").slopes()
    assert set(slopes) == {"first", "second", "last"}
    assert max(map(abs, slopes.values())) < 0.15


@pytest.mark.parametrize("name", RATES)
def test_under_the_standard_parametrisation_they_do_not(name):
    """The first step moves the output in proportion to the width."""
    assert check(name, "standard").slopes(step=1)["last"] > 0.75


def test_sizes_are_those_of_the_activations():
    found = check("adam", "standard")
    assert found.sizes["first"].shape == found.changes["first"].shape == (2, 4)
    model = Tapped(WIDTHS[0])
    x = jax.random.normal(jax.random.key(1), (16, 8))
    _, taps = jd.capture(model, "second")(model.init(jax.random.key(0)), x)
    size = np.sqrt(np.mean(np.square(taps["second"])))
    np.testing.assert_allclose(found.sizes["second"][0, 0], size, rtol=1e-5)
    for change in found.changes.values():
        assert (change[:, 0] == 0).all() and (change[:, 1:] > 0).all()


@pytest.mark.slow
def test_a_decoder_is_flat_under_mup_alone():
    tokens = jax.random.randint(jax.random.key(1), (4, 16), 0, 64)

    def model(width):
        config = models.DecoderConfig(
            vocab_size=64, seq_len=16, dim=width, num_layers=2, num_heads=width // 16,
            tie_embeddings=False,
        )  # fmt: skip
        return models.Decoder(config)

    def slopes(parametrisation):
        def build(width):
            base = model(32) if parametrisation == "mup" else model(width)
            mu = optim.mup(model(width), base)

            def loss(params):
                logits = mu.model(params, tokens[:, :-1], key=None)
                return optax.softmax_cross_entropy_with_integer_labels(
                    logits, tokens[:, 1:]
                ).mean()

            optimizer = optax.chain(optax.adam(3e-3), optim.scale_by_path(mu.adam))
            return loss, mu.init(jax.random.key(0)), optimizer

        taps = ("blocks/resid_post", "blocks/mlp/hidden", "logits")
        return optim.coordinate_check(build, (32, 64, 128), 2, taps).slopes().values()

    assert max(map(abs, slopes("mup"))) < 0.25
    assert min(slopes("standard")) > 0.6


def test_the_picture_has_a_panel_for_each_check(tmp_path):
    checks = {"standard": check("adam", "standard"), "muP": check("adam", "mup")}
    path = tmp_path / "new" / "check.svg"
    optim.plot_coordinates(checks, path)
    assert path.read_text().count('<g id="axes_') == 2
