from hypothesis import given
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import nn

rng = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@given(shift=st.integers(0, 1000), start=st.integers(0, 50))
def test_rope_scores_depend_on_distance_alone(shift, start):
    rope = nn.RoPE(8)
    q, k = normal(1, 1, 1, 8), normal(1, 1, 1, 8)

    def score(i, j):
        turned = (
            rope({}, q, positions=jnp.array([i])),
            rope({}, k, positions=jnp.array([j])),
        )
        return float((turned[0] * turned[1]).sum())

    assert abs(score(start + 3, start) - score(start + shift + 3, start + shift)) < 1e-3


def test_rope_turns_pairs_by_the_angles_of_the_paper():
    vector, position = normal(8), 5
    pairs = np.asarray(vector[:4] + 1j * vector[4:])
    angles = position / 10_000.0 ** (np.arange(4) / 4)
    turned = pairs * np.exp(1j * angles)
    ours = nn.RoPE(8)({}, vector[None, None, None], positions=jnp.array([position]))
    expected = np.concatenate([turned.real, turned.imag])
    np.testing.assert_allclose(ours.reshape(8), expected, rtol=1e-5, atol=1e-6)


def test_rope_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="an even number of rotated features.*got 7"):
        nn.RoPE(7)
    with pytest.raises(ValueError, match=r"integer positions \[1, 3\] or \[3\]"):
        nn.RoPE(8)({}, normal(1, 3, 1, 8), positions=jnp.arange(4))
