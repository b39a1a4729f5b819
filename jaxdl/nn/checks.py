"""What layers ask of their inputs: an integer is an error, never a rounded result."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdl.core.naming import expect


def floating(x: Any, dtype: Any = None) -> jax.Array:
    """x as it is, or in a dtype if one is given; ValueError unless it is floating."""
    x = jnp.asarray(x)
    expect(jnp.issubdtype(x.dtype, jnp.floating), "a floating dtype", x)
    return x if dtype is None else x.astype(dtype)


def check_positions(positions: Any, x: jax.Array) -> None:
    """Raises ValueError unless positions are integers for x [batch, seq, ...]."""
    batch, seq = x.shape[:2]
    integer = jnp.issubdtype(positions.dtype, jnp.integer)
    fits = integer and positions.shape in ((seq,), (1, seq), (batch, seq))
    wanted = f"integer positions [{batch}, {seq}] or [{seq}]"
    expect(fits, wanted, positions)
