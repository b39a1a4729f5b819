"""Positions: how a transformer knows the order of its tokens."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdl.core.module import Module
from jaxdl.core.naming import expect


class RoPE(Module):
    """Rotates pairs of features by an angle that grows with the position.

    [batch, seq, heads, head_dim] with positions [batch, seq] or [seq]; the score of two
    rotated vectors depends on their distance alone. Feature i is paired with
    i + head_dim / 2, as in Llama and Hugging Face (Su et al. 2021, arXiv:2104.09864).
    """

    head_dim: int
    theta: float = 10_000.0

    def __post_init__(self):
        if self.head_dim % 2:
            raise ValueError(f"RoPE: expected an even head_dim, got {self.head_dim}")

    def __call__(
        self,
        params,
        x: Float[Array, "batch seq heads dim"],
        *,
        positions: Int[Array, "..."],
    ):
        expect(x.shape[-1] == self.head_dim, f"[batch, seq, heads, {self.head_dim}]", x)
        expect(
            positions.shape[-1] == x.shape[1],
            f"positions [..., {x.shape[1]}]",
            positions,
        )
        exponent = jnp.arange(0, self.head_dim, 2, dtype=jnp.float32) / self.head_dim
        angles = (
            positions[..., None, None] * self.theta**-exponent
        )  # [..., seq, 1, dim / 2]
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        turned = (first * cos - second * sin, second * cos + first * sin)
        return jnp.concatenate(turned, axis=-1).astype(x.dtype)
