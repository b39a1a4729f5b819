"""Linear, multilinear and embedding layers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdl.core import init as initializers
from jaxdl.core.fields import Size
from jaxdl.core.layout import constrain
from jaxdl.core.module import Module, scoped
from jaxdl.core.naming import expect
from jaxdl.core.param import Param
from jaxdl.nn.checks import floating


class Linear(Module):
    """Multiplies by a kernel, adds a bias: [..., in_features] -> [..., out_features].

    Computes in the dtype of the kernel. `axes` are the logical names of the kernel's
    two dimensions. `kernel` is [in, out], the transpose of PyTorch's `weight`.
    """

    in_features: Size
    out_features: Size
    bias: bool = True
    axes: tuple[str | None, str | None] = (None, None)
    kernel_init: Callable[..., jax.Array] = initializers.lecun_normal()
    bias_init: Callable[..., jax.Array] = initializers.zeros

    def spec(self):
        shape = (self.in_features, self.out_features)
        spec = {"kernel": Param(shape, self.kernel_init, self.axes)}
        if self.bias:
            axes = (self.axes[1],)
            spec["bias"] = Param(
                (self.out_features,), self.bias_init, axes, role="bias"
            )
        return spec

    def __call__(self, params, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        expect(x.shape[-1:] == (self.in_features,), f"[..., {self.in_features}]", x)
        y = floating(x, params["kernel"].dtype) @ params["kernel"]
        return y + params["bias"] if self.bias else y

    def matrix(self, params) -> Float[Array, "... fan_in fan_out"]:
        """The matrix that multiplies x. An adapted or quantised layer makes its own."""
        return params["kernel"]


class Einsum(Module):
    """A linear map of any axes: `equation` is that of `jnp.einsum`, "x,kernel->y".

    `Einsum("btd,dhk->bthk", (64, 8, 16))` projects to 8 heads of 16. `shape` is the
    kernel's; the bias has the kernel's axes that stand last in y: those of h and k
    here. The fan-in is over the axes that the sum runs over.
    """

    equation: str
    shape: tuple[int, ...]
    bias: bool = False
    axes: tuple[str | None, ...] | None = None

    def __post_init__(self):
        _, kernel, y = self.terms()
        if len(kernel) != len(self.shape) or not y.endswith(self._free()):
            raise ValueError(
                "Einsum: expected an equation x,kernel->y with one kernel letter for "
                f"each size of {tuple(self.shape)}, and the kernel's own letters last "
                f"in y, got {self.equation!r}"
            )

    def spec(self):
        x, kernel, _ = self.terms()
        summed = tuple(i for i, letter in enumerate(kernel) if letter in x)
        own = tuple(i for i, letter in enumerate(kernel) if letter not in x)
        init = initializers.lecun_normal(in_axis=summed, out_axis=own)
        spec = {"kernel": Param(self.shape, init, self.axes)}
        if self.bias:
            shape = tuple(self.shape[i] for i in own)
            axes = self.axes and tuple(self.axes[i] for i in own)
            spec["bias"] = Param(shape, initializers.zeros, axes, role="bias")
        return spec

    def __call__(self, params, x: Float[Array, "..."]) -> Float[Array, "..."]:
        letters, kernel, _ = self.terms()
        sizes = dict(zip(kernel, self.shape, strict=True))
        expected = [sizes.get(letter, letter) for letter in letters]
        fits = x.ndim == len(letters) and all(
            size == wanted or isinstance(wanted, str)
            for size, wanted in zip(x.shape, expected, strict=False)
        )
        expect(fits, f"[{', '.join(map(str, expected))}]", x)
        x = floating(x, params["kernel"].dtype)
        y = jnp.einsum(self.equation, x, params["kernel"])
        return y + params["bias"] if self.bias else y

    def matrix(self, params) -> Float[Array, "..."]:
        """The kernel. An adapted layer makes its own."""
        return params["kernel"]

    def terms(self) -> tuple[str, str, str]:
        """The letters of x, of the kernel and of y."""
        inputs, _, y = self.equation.replace(" ", "").partition("->")
        x, _, kernel = inputs.partition(",")
        return x, kernel, y

    def _free(self) -> str:
        x, kernel, _ = self.terms()
        return "".join(letter for letter in kernel if letter not in x)


class Bilinear(Module):
    """x1 A x2 + b for each output: [..., first], [..., second] -> [..., out_features].

    The kernel is [first, second, out_features] (PyTorch's `Bilinear`, whose weight has
    the outputs in front).
    """

    first_features: Size
    second_features: Size
    out_features: Size
    bias: bool = True

    def spec(self):
        shape = (self.first_features, self.second_features, self.out_features)
        init = initializers.lecun_normal(in_axis=(0, 1), out_axis=2)
        spec = {"kernel": Param(shape, init)}
        if self.bias:
            spec["bias"] = Param(shape[-1:], initializers.zeros, role="bias")
        return spec

    def __call__(self, params, x1: Float[Array, "... a"], x2: Float[Array, "... b"]):
        expect(
            x1.shape[-1:] == (self.first_features,), f"[..., {self.first_features}]", x1
        )
        shape = (*x1.shape[:-1], self.second_features)
        expect(x2.shape == shape, f"x2 {list(shape)}", x2)
        dtype = params["kernel"].dtype
        x1, x2 = floating(x1, dtype), floating(x2, dtype)
        y = jnp.einsum("...a,...b,abo->...o", x1, x2, params["kernel"])
        return y + params["bias"] if self.bias else y


class Embedding(Module):
    """Looks up a row for each token: int [...] -> [..., features].

    A token outside [0, num_embeddings) gives NaN, never another token's row. `logits`
    uses the same table as an output layer (Press and Wolf 2017).
    """

    num_embeddings: Size
    features: Size
    axes: tuple[str | None, str | None] = ("vocab", "embed")
    embedding_init: Callable[..., jax.Array] = initializers.normal(0.02)

    def spec(self):
        shape = (self.num_embeddings, self.features)
        table = Param(shape, self.embedding_init, self.axes, role="embedding")
        return {"embedding": table}

    def __call__(
        self, params, tokens: Int[Array, "..."]
    ) -> Float[Array, "... features"]:
        integer = jnp.issubdtype(jnp.result_type(tokens), jnp.integer)
        expect(integer, "integer tokens", tokens)
        rows = params["embedding"].at[jnp.asarray(tokens)]
        y = rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        if y.ndim == 3:
            # Rows first stay split as the table is. Else the gradient of one that is
            # split by its features is written from the batch of all devices.
            names = ("batch", "sequence", self.axes[1])
            y = constrain(constrain(y, *names, first=names[2]), *names)
        return y

    @scoped
    def logits(
        self, params, x: Float[Array, "... features"]
    ) -> Float[Array, "... num"]:
        """Scores every token: [..., features] -> [..., num_embeddings]."""
        expect(x.shape[-1:] == (self.features,), f"[..., {self.features}]", x)
        return floating(x, params["embedding"].dtype) @ params["embedding"].T

    def matrix(self, params) -> Float[Array, "... num features"]:
        """The table of rows. A quantised layer makes its own."""
        return params["embedding"]
