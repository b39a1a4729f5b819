"""Recurrent layers: cells that take one step, and the scan that runs them over time.

A cell is called `(params, x, carry)` and returns `(y, carry)`. `Recurrent(cell)` is a
layer [batch, seq, features] -> [batch, seq, hidden], so that stacking is `Sequential`
and both directions are `Bidirectional`. Gates are PyTorch's, in its order and with its
two biases.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdl.core import init as initializers
from jaxdl.core.fields import Size
from jaxdl.core.module import Module, fill, inline, part, scoped
from jaxdl.core.naming import expect
from jaxdl.nn.linear import Linear


class RNNCell(Module):
    """h' = activation(W x + b + U h + c): [batch, in], [batch, hidden] (Elman 1990)."""

    in_features: Size
    hidden: Size
    activation: Callable[[jax.Array], jax.Array] = jnp.tanh
    input: Module = part(default=None)
    recurrent: Module = part(default=None)

    def __post_init__(self):
        _fill_gates(self, 1)

    def zeros(self, batch: int, dtype: Any) -> jax.Array:
        return jnp.zeros((batch, self.hidden), dtype)

    def __call__(self, params, x, carry):
        return self.step(params, self.input(params["input"], x), carry)

    @scoped
    def step(self, params, projected, carry):
        """One step from the input's part of the sums: [batch, hidden]."""
        hidden = self.activation(projected + self.recurrent(params["recurrent"], carry))
        return hidden, hidden


class LSTMCell(Module):
    """Long short-term memory: carry (h, c), gates i, f, g, o (Hochreiter 1997).

    c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c').
    """

    in_features: Size
    hidden: Size
    input: Module = part(default=None)
    recurrent: Module = part(default=None)

    def __post_init__(self):
        _fill_gates(self, 4)

    def zeros(self, batch: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
        zeros = jnp.zeros((batch, self.hidden), dtype)
        return zeros, zeros

    def __call__(self, params, x, carry):
        return self.step(params, self.input(params["input"], x), carry)

    @scoped
    def step(self, params, projected, carry):
        """One step from the input's part of the gates: [batch, 4 hidden]."""
        hidden, memory = carry
        gates = projected + self.recurrent(params["recurrent"], hidden)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        memory = jax.nn.sigmoid(f) * memory + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(memory)
        return hidden, (hidden, memory)


class GRUCell(Module):
    """Gated recurrent unit: gates r, z, n (Cho et al. 2014, arXiv:1406.1078).

    n = tanh(x's part + sigmoid(r) h's part), h' = (1 - sigmoid(z)) n + sigmoid(z) h.
    """

    in_features: Size
    hidden: Size
    input: Module = part(default=None)
    recurrent: Module = part(default=None)

    def __post_init__(self):
        _fill_gates(self, 3)

    def zeros(self, batch: int, dtype: Any) -> jax.Array:
        return jnp.zeros((batch, self.hidden), dtype)

    def __call__(self, params, x, carry):
        return self.step(params, self.input(params["input"], x), carry)

    @scoped
    def step(self, params, projected, carry):
        """One step from the input's part of the gates: [batch, 3 hidden]."""
        recurrent = self.recurrent(params["recurrent"], carry)
        (xr, xz, xn), (hr, hz, hn) = (
            jnp.split(part, 3, axis=-1) for part in (projected, recurrent)
        )
        z = jax.nn.sigmoid(xz + hz)
        n = jnp.tanh(xn + jax.nn.sigmoid(xr + hr) * hn)
        hidden = (1 - z) * n + z * carry
        return hidden, hidden


class Recurrent(Module):
    """Runs a cell over time, in one scan: [batch, seq, in] -> [batch, seq, hidden].

    `lengths` int [batch] end the sequences: beyond its length a sequence gives zeros
    and its carry stays. `reverse` goes from the last step to the first. Parameters are
    the cell's, at the same path. `run` also takes and returns the carry.
    """

    cell: Any = inline()
    reverse: bool = False

    def __call__(
        self,
        params,
        x: Float[Array, "batch seq in"],
        *,
        lengths: Int[Array, " batch"] | None = None,
    ) -> Float[Array, "batch seq hidden"]:
        return self.run(params, x, lengths=lengths)[0]

    @scoped
    def run(
        self,
        params,
        x: Float[Array, "batch seq in"],
        carry: Any = None,
        *,
        lengths: Int[Array, " batch"] | None = None,
    ) -> tuple[Float[Array, "batch seq hidden"], Any]:
        """The outputs and the last carry; `carry` is where to start, zeros if None."""
        expect(x.ndim == 3, f"[batch, seq, {self.cell.in_features}]", x)
        batch, seq = x.shape[:2]
        # What the input adds to the gates needs no recurrence: one product for all
        # time.
        projected = self.cell.input(params["input"], x)
        valid = _valid(lengths, batch, seq)
        if carry is None:
            carry = self.cell.zeros(batch, projected.dtype)

        def step(carry, inputs):
            now, counts = inputs
            y, new = self.cell.step(params, now, carry)
            kept = jax.tree.map(
                lambda a, b: jnp.where(counts[:, None], a, b), new, carry
            )
            return kept, jnp.where(counts[:, None], y, 0)

        inputs = (projected.swapaxes(0, 1), valid.T)
        carry, y = jax.lax.scan(step, carry, inputs, reverse=self.reverse)
        return y.swapaxes(0, 1), carry


class Bidirectional(Module):
    """Two directions side by side: [batch, seq, in] -> [batch, seq, 2 hidden].

    `forward` and `backward` are `Recurrent` layers, the second one reversed.
    """

    forward: Recurrent
    backward: Recurrent

    def __post_init__(self):
        if self.forward.reverse or not self.backward.reverse:
            raise ValueError(
                "Bidirectional: expected forward with reverse=False and backward with "
                "reverse=True"
            )

    def __call__(self, params, x, *, lengths=None):
        ahead = self.forward(params["forward"], x, lengths=lengths)
        back = self.backward(params["backward"], x, lengths=lengths)
        return jnp.concatenate([ahead, back], axis=-1)


def _fill_gates(cell: Any, gates: int) -> None:
    bound = cell.hidden**-0.5
    init = initializers.uniform(-bound, bound)  # PyTorch's

    def linear(features: int) -> Linear:
        width = gates * cell.hidden
        return Linear(features, width, kernel_init=init, bias_init=init)

    fill(cell, input=linear(cell.in_features), recurrent=linear(cell.hidden))


def _valid(lengths: Any, batch: int, seq: int) -> jax.Array:
    if lengths is None:
        return jnp.ones((batch, seq), bool)
    integer = jnp.issubdtype(lengths.dtype, jnp.integer)
    fits = integer and lengths.shape == (batch,)
    expect(fits, f"integer lengths [{batch}]", lengths)
    return jnp.arange(seq) < lengths[:, None]
