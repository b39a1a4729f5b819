"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import optax
from optax.contrib import MuonDimensionNumbers

from jaxdl.core import tree
from jaxdl.optim.matrices import (
    Matrices,
    as_matrices,
    dimension_numbers,
    from_matrices,
    matrix_shape,
)

PyTree = Any


def soap(
    learning_rate: optax.ScalarOrSchedule,
    matrices: Matrices = None,
    *,
    b1: float = 0.95,
    b2: float = 0.95,
    shampoo_beta: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    mask: Any = None,
    preconditioner_frequency: int = 10,
    max_dim: int = 10_000,
) -> optax.GradientTransformationExtraArgs:
    """SOAP (Vyas et al. 2024, arXiv:2409.11321) for matrices, Adam for the rest.

    matrices: the model, or see `optim.matrices.dimension_numbers`. Stacked layers and
      experts have preconditioners of their own; a convolution's kernel is the matrix
      [height * width * in, out].
    shampoo_beta: the decay of the preconditioner.
    mask: what decays, as in `optax.adamw`.
    preconditioner_frequency: every how many steps the eigenbasis is brought up to date.
    max_dim: a longer side, as the vocabulary's of an embedding, is not preconditioned:
      a side of n keeps 2 n² numbers, and the QR decomposition of [n, n] takes n³ steps.

    The first step finds a basis and changes no matrix, as in the authors' code: no
    gradient is divided by what it alone has made.
    """
    rotated = scale_by_soap(
        matrices,
        b1=b1,
        b2=b2,
        shampoo_beta=shampoo_beta,
        eps=eps,
        preconditioner_frequency=preconditioner_frequency,
        max_dim=max_dim,
    )

    def labels(params: PyTree) -> PyTree:
        numbers = dimension_numbers(matrices, params)

        def label(path, leaf):
            if path not in numbers:
                return "adam"
            sides = matrix_shape(leaf.shape, numbers[path])[-2:]
            return "soap" if min(sides) <= max_dim else "adam"

        return tree.map_with_path(label, params)

    adam = optax.scale_by_adam(b1, b2, eps)
    return optax.chain(
        optax.partition({"soap": rotated, "adam": adam}, labels),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


class SoapState(NamedTuple):
    """What SOAP remembers: a count of steps, and trees with the structure of params.

    mu: mean of the gradients; nu: of their squares in the eigenbasis. float32, shaped
      as the parameter.
    left, right: means of G Gᵀ [*batch, rows, rows] and Gᵀ G [*batch, columns, columns];
      `optax.MaskedNode` for a side that is not preconditioned.
    left_basis, right_basis: their eigenvectors as columns, of large values first.
    """

    count: Any
    mu: PyTree
    nu: PyTree
    left: PyTree
    right: PyTree
    left_basis: PyTree
    right_basis: PyTree


def scale_by_soap(
    matrices: Matrices = None,
    *,
    b1: float = 0.95,
    b2: float = 0.95,
    shampoo_beta: float = 0.95,
    eps: float = 1e-8,
    preconditioner_frequency: int = 10,
    max_dim: int = 10_000,
) -> optax.GradientTransformation:
    """The updates of `soap` before the rate, for params that are all matrices."""
    if preconditioner_frequency < 1:
        raise ValueError(
            "soap: expected a preconditioner_frequency from 1, got "
            f"{preconditioner_frequency}"
        )

    def init(params: PyTree) -> SoapState:
        numbers = dimension_numbers(matrices, params)

        def zeros():
            return optax.tree.zeros_like(params, dtype=jnp.float32)

        def sides(axis: int):
            return tree.map_with_path(
                lambda path, leaf: _no_factor(leaf, numbers[path], axis, max_dim),
                params,
            )

        # A basis of zeros turns everything into zeros: the first step changes nothing.
        trees = zeros(), zeros(), sides(-2), sides(-1), sides(-2), sides(-1)
        return SoapState(jnp.zeros((), jnp.int32), *trees)

    def update(updates: PyTree, state: Any, params: PyTree = None):
        del params
        numbers, count = dimension_numbers(matrices, updates), state.count

        def step(path, gradient, *trees) -> _Leaf:
            old = _Leaf(gradient, *trees).map(as_matrices, numbers[path])
            g = old.update
            decay = jnp.where(count == 0, 1.0, b1)
            old = old._replace(
                mu=decay * old.mu + (1 - decay) * g,
                nu=b2 * old.nu + (1 - b2) * jnp.square(_turn(g, *old.bases)),
                left=_averaged(old.left, g @ g.mT, shampoo_beta),
                right=_averaged(old.right, g.mT @ g, shampoo_beta),
            )
            new = old._replace(update=_direction(old, count, b1, b2, eps))
            new = _renewed(new, count, preconditioner_frequency)
            new = new.map(from_matrices, gradient.shape, numbers[path])
            return new._replace(update=new.update.astype(gradient.dtype))

        leaves = tree.map_with_path(step, updates, *state[1:])
        updates, *trees = (
            jax.tree.map(lambda leaf, i=i: leaf[i], leaves, is_leaf=_is_leaf)
            for i in range(len(_Leaf._fields))
        )
        return updates, SoapState(optax.safe_increment(count), *trees)

    return optax.GradientTransformation(init, update)


class _Leaf(NamedTuple):
    """The state of one parameter, and its gradient or update."""

    update: Array
    mu: Array
    nu: Array
    left: Any
    right: Any
    left_basis: Any
    right_basis: Any

    @property
    def bases(self):
        return self.left_basis, self.right_basis

    def map(self, function, *args) -> "_Leaf":
        """Applies a function to what has the parameter's shape, in float32."""
        update, mu, nu = (function(x.astype(jnp.float32), *args) for x in self[:3])
        return self._replace(update=update, mu=mu, nu=nu)


def _direction(leaf: _Leaf, count, b1: float, b2: float, eps: float) -> Array:
    """Adam's update, divided in the eigenbasis."""
    steps = jnp.maximum(count, 1)  # the first is not one of them
    mu = optax.tree.bias_correction(leaf.mu, b1, steps)
    nu = optax.tree.bias_correction(leaf.nu, b2, steps)
    turned = _turn(mu, *leaf.bases) / (jnp.sqrt(nu) + eps)
    return _turn(turned, *(_transposed(basis) for basis in leaf.bases))


def _renewed(leaf: _Leaf, count: jax.Array, frequency: int) -> _Leaf:
    """Brings the bases up to date: from nothing, by QR iteration, or not at all."""
    which = jnp.where(count == 0, 2, jnp.where(count % frequency == 0, 1, 0))
    return jax.lax.switch(which, [lambda same: same, _iterated, _from_nothing], leaf)


def _from_nothing(leaf: _Leaf) -> _Leaf:
    def basis(factor):
        return jnp.linalg.eigh(factor)[1][..., ::-1]

    return leaf._replace(
        left_basis=_if_any(basis, leaf.left), right_basis=_if_any(basis, leaf.right)
    )


def _iterated(leaf: _Leaf) -> _Leaf:
    """One step of QR iteration for either side (algorithm 4 of the paper)."""
    nu, bases = leaf.nu, []
    for axis, factor, basis in zip(
        (-2, -1), (leaf.left, leaf.right), leaf.bases, strict=True
    ):
        if not _missing(factor):
            grown = factor @ basis
            order = jnp.argsort(-jnp.sum(basis * grown, -2))
            # The second moments move along with the eigenvectors that they belong to.
            nu = jnp.take_along_axis(nu, jnp.expand_dims(order, -3 - axis), axis)
            grown = jnp.take_along_axis(grown, order[..., None, :], -1)
            basis, _ = jnp.linalg.qr(grown)
        bases.append(basis)
    return leaf._replace(nu=nu, left_basis=bases[0], right_basis=bases[1])


def _turn(x: Float[Array, "*batch rows columns"], left, right) -> Array:
    """leftᵀ x right: into the eigenbasis, or by transposed bases out of it."""
    x = x if _missing(left) else left.mT @ x
    return x if _missing(right) else x @ right


def _no_factor(leaf: Any, numbers: MuonDimensionNumbers, axis: int, max_dim: int):
    *batch, rows, columns = matrix_shape(leaf.shape, numbers)
    size = (rows, columns)[axis]
    if size > max_dim:
        return optax.MaskedNode()
    return jnp.zeros((*batch, size, size), jnp.float32)


def _averaged(old: Any, new: Array, decay: float) -> Any:
    return _if_any(lambda old: decay * old + (1 - decay) * new, old)


def _transposed(basis: Any) -> Any:
    return _if_any(lambda basis: basis.mT, basis)


def _if_any(function, factor: Any) -> Any:
    return factor if _missing(factor) else function(factor)


def _missing(factor: Any) -> bool:
    return isinstance(factor, optax.MaskedNode)


def _is_leaf(node: Any) -> bool:
    return isinstance(node, _Leaf)
