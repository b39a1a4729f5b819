"""Mixed precision, applied where a function is called: parameters stay in float32."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.core import tree


@dataclasses.dataclass(frozen=True)
class Policy:
    """Computes in one dtype with parameters kept in another.

    `cast` turns floating leaves into `compute`, except those whose path fits a pattern
    of `keep`. The layers compute in the dtype of their kernels, so casting the
    parameters is enough; the cast is part of the differentiated function, so gradients
    come back in the parameters' own dtype.

    >>> policy = Policy(keep=("**/scale",))
    >>> params = {"kernel": jnp.ones(2), "scale": jnp.ones(2)}
    >>> jax.tree.map(lambda x: str(x.dtype), policy.cast(params))
    {'kernel': 'bfloat16', 'scale': 'float32'}
    """

    compute: Any = jnp.bfloat16
    output: Any = jnp.float32
    keep: tuple[str, ...] = ()

    def __post_init__(self):
        keep = (self.keep,) if isinstance(self.keep, str) else tuple(self.keep)
        object.__setattr__(self, "keep", keep)
        object.__setattr__(self, "compute", np.dtype(self.compute))
        object.__setattr__(self, "output", np.dtype(self.output))

    def cast(self, params: Any) -> Any:
        """Casts the floating leaves to the compute dtype, except the kept paths.

        Raises ValueError when a pattern of `keep` fits no path.
        """
        kept = set(tree.matching(self.keep, tree.flatten(params)))
        return tree.map_with_path(
            lambda path, leaf: leaf if path in kept else _cast(leaf, self.compute),
            params,
        )

    def apply(self, function: Callable) -> Callable:
        """Wraps `function(params, *args)`: params cast going in, floats coming out."""

        @functools.wraps(function)
        def call(params, *args, **kwargs):
            result = function(self.cast(params), *args, **kwargs)
            return jax.tree.map(lambda leaf: _cast(leaf, self.output), result)

        return call


def _cast(leaf: Any, dtype: Any) -> Any:
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
        return leaf
    return jnp.asarray(leaf).astype(dtype)
