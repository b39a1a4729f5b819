import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import nn
from jaxdl.core import naming
from jaxdl.core.keys import MISSING


def test_split_passes_absence_on():
    assert jd.split(None, 2) == [None, None]
    assert jd.split(MISSING, 2) == [MISSING, MISSING]
    keys = jd.split(jax.random.key(0), 2)
    np.testing.assert_array_equal(
        jax.random.key_data(jnp.stack(keys)),
        jax.random.key_data(jax.random.split(jax.random.key(0), 2)),
    )


def test_scopes_nest_and_end_even_when_an_error_passes():
    with pytest.raises(KeyError), jd.scope("a"):
        with jd.scope("b"):
            assert naming.current_path("c") == "a/b/c"
        raise KeyError
    assert naming.current_path() == ""


def test_the_path_shows_in_the_compiled_program_for_profilers():
    model = nn.Sequential([nn.Linear(2, 3), nn.Sequential([nn.Linear(3, 1)])])
    args = (jd.abstract(model), jax.ShapeDtypeStruct((4, 2), jnp.float32))
    text = jax.jit(lambda p, x: model(p, x)).lower(*args).as_text(debug_info=True)
    assert "1/0/dot_general" in text


def test_a_method_with_params_is_scoped_when_it_says_so():
    class Tied(jd.Module):
        embed: nn.Embedding

        def __call__(self, params, tokens):
            x = self.embed(params["embed"], tokens)
            return self.embed.logits(params["embed"], x[..., :2])

    model = Tied(nn.Embedding(5, 3))
    with pytest.raises(
        ValueError, match=r"embed: expected \[..., 3\], got float32\[4, 2\]"
    ):
        model(model.init(jax.random.key(0)), jnp.arange(4))
