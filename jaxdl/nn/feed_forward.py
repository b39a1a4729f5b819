"""The feed-forward layer of a transformer, plain or gated."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from jaxdl.core import init as initializers
from jaxdl.core.fields import Size
from jaxdl.core.keys import MISSING, OptionalKey
from jaxdl.core.module import Module, fill, part
from jaxdl.core.naming import expect
from jaxdl.core.tap_primitive import tap
from jaxdl.nn import routing
from jaxdl.nn.dropout import Dropout
from jaxdl.nn.linear import Linear


class FeedForward(Module):
    """Two linear maps around an activation: [..., dim] -> [..., dim].

    down(activation(up(x))) (Vaswani et al. 2017, section 3.3); `hidden` is 4 dim unless
    given. Gated it is down(activation(gate(x)) * up(x)): SwiGLU with `jax.nn.silu`,
    GEGLU with `jax.nn.gelu` (Shazeer 2020, arXiv:2002.05202). Dropout acts on the
    result, as in GPT-2.

    Taps: `hidden`, what `down` reads.
    """

    dim: Size
    hidden: Size | None = None
    activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu
    bias: bool = False
    dropout: float = 0.0
    gated: bool = False
    kernel_init: Any = initializers.lecun_normal()
    out_init: Any = initializers.lecun_normal()
    up: Module = part(default=None)
    gate: Module | None = part(default=None)
    down: Module = part(default=None)
    drop: Module = part(default=None)

    def __post_init__(self):
        fill(self, hidden=4 * self.dim)
        width = self.width
        up = Linear(self.dim, width, self.bias, ("embed", "mlp"), self.kernel_init)
        fill(
            self,
            up=up,
            down=Linear(width, self.dim, self.bias, ("mlp", "embed"), self.out_init),
            drop=Dropout(self.dropout),
        )
        if self.gated:
            fill(self, gate=up)

    @property
    def width(self) -> int:
        return self.hidden or 4 * self.dim

    def __call__(
        self, params, x: Float[Array, "... dim"], *, key: OptionalKey = MISSING
    ) -> Float[Array, "... dim"]:
        expect(x.shape[-1:] == (self.dim,), f"[..., {self.dim}]", x)
        part = routing.parts(self, params, key)
        hidden = part("up", x)
        if self.gate is None:
            hidden = self.activation(hidden)
        else:
            hidden = self.activation(part("gate", x)) * hidden
        return part("drop", part("down", tap(hidden, "hidden")))
