"""muP: initial sizes and learning rates that a wider model shares with a narrow one."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import jax

from jaxdl.core import init as initializers
from jaxdl.core import tree
from jaxdl.core.module import Module, declared, map_modules
from jaxdl.core.param import Param
from jaxdl.nn.attention import Attention
from jaxdl.optim.matrices import axes, declared_numbers


@dataclasses.dataclass(frozen=True)
class Mup:
    """What muP makes of a model; see `mup`. By path, where it is not 1:

    initial: what the initial values are multiplied by; `init` does so.
    adam, sgd: what the learning rate is multiplied by, for `optim.scale_by_path`.

    model: the model, with attention's scores divided by head_dim instead of its root.
    tied_multiplier: what logits are to be multiplied by where the head is the
      embedding; a head of its own needs nothing.
    """

    model: Module
    initial: Mapping[str, float]
    adam: Mapping[str, float]
    sgd: Mapping[str, float]
    tied_multiplier: float

    def init(self, key: jax.Array) -> dict:
        """Draws the parameters. A function of the key, so `jd.shard.init` takes it."""
        return tree.map_with_path(
            lambda path, leaf: leaf * self.initial.get(path, 1.0), self.model.init(key)
        )


def mup(model: Module, base: Module) -> Mup:
    """The maximal update parametrisation, against a base of another width.

    Learning rates found for the base are those of the model (Yang et al. 2022,
    arXiv:2203.03466, table 3). The base itself is left as it is: muP begins there. The
    declarations tell what grew. With r and c how often a weight's rows (fan-in) and
    columns (fan-out) are those of the base:

        weight with                    initial      Adam    SGD
        rows and columns that grew     r ** -0.5    1 / r   c / r
        columns alone (input)          1            1       c
        rows alone (output)            1 / r        1 / r   1 / r
        biases, scales, embeddings     1            1       c

    where initial is of the base's standard deviation, whatever the initialiser makes of
    the larger shape, and c is for embeddings that of their features. Attention whose
    heads grew by h has the base's scale divided by h.

    `optax.chain(optax.adam(rate), optim.scale_by_path(mup(model, base).adam))`.

    Raises ValueError, naming the path, where the two do not declare the same parameters
    up to their widths, or an initialiser's standard deviation is not known.

    >>> from jaxdl import models
    >>> scaled = mup(models.mlp([8, 512, 512, 2]), models.mlp([8, 128, 128, 2]))
    >>> scaled.adam
    {'2/kernel': 0.25, '4/kernel': 0.25}
    """
    params, narrow = (tree.flatten(declared(each, Param)) for each in (model, base))
    if missing := sorted(params.keys() ^ narrow.keys()):
        raise ValueError(
            "mup: expected the base to declare the parameters of the model, got "
            f"{missing} in one of them"
        )
    grown = {path: _growth(path, param, narrow[path]) for path, param in params.items()}
    initial, adam, sgd = {}, {}, {}
    for path, (rows, columns) in grown.items():
        initial[path] = _initial(path, params[path], narrow[path], rows, columns)
        adam[path], sgd[path] = 1 / rows, columns / rows
    tables = [c for path, (_, c) in grown.items() if params[path].role == "embedding"]
    return Mup(
        _scaled_attention(model, base),
        *(_not_one(factors) for factors in (initial, adam, sgd)),
        tied_multiplier=1 / max(tables, default=1.0),
    )


def _growth(path: str, param: Param, base: Param) -> tuple[float, float]:
    """How often rows and columns are those of the base."""
    fits = param.role == base.role and len(param.shape) == len(base.shape)
    if not fits or param.shape[: param.stacked] != base.shape[: base.stacked]:
        raise ValueError(
            f"{path}: expected a base of the same role and depth, got "
            f"{base.role}{list(base.shape)} for {param.role}{list(param.shape)}"
        )
    numbers = declared_numbers(param)
    ratios = [n / m for n, m in zip(param.shape, base.shape, strict=True)]
    if numbers is None:
        return 1.0, math.prod(ratios)
    _, rows, columns = axes(len(param.shape), numbers)
    out = math.prod(ratios[i] for i in columns)
    # A row of an embedding is looked up, not summed over.
    looked_up = param.role == "embedding"
    return 1.0 if looked_up else math.prod(ratios[i] for i in rows), out


def _initial(path, param: Param, base: Param, rows: float, columns: float) -> float:
    matrix = declared_numbers(param) is not None
    wide, narrow = (_stddev(each) for each in (param, base))
    if wide is None or narrow is None:
        if matrix:
            raise ValueError(
                f"{path}: expected an initialiser of jd.init, whose standard deviation "
                f"is known, got {param.init!r}"
            )
        return 1.0
    if not wide or not narrow:
        return 1.0
    power = -1.0 if columns == 1.0 else -0.5
    return narrow / wide * rows**power


def _stddev(param: Param) -> float | None:
    """The standard deviation of the initial values up to a constant; None: unknown."""
    init, shape = param.init, param.shape[param.stacked :]
    if isinstance(init, initializers.Uniform):
        return init.high - init.low
    if not isinstance(init, initializers.Initializer):
        return None
    if not init.random:
        return 0.0
    given = dict(init.arguments)
    if "stddev" in given:
        return given["stddev"]
    if init.name == "orthogonal":
        columns = shape[given["column_axis"]]
        return given["scale"] / max(columns, math.prod(shape) / columns) ** 0.5
    name = init.name.split("_")[0]
    scale = given.get("scale", {"he": 2.0}.get(name, 1.0))
    mode = given.get("mode", {"glorot": "fan_avg"}.get(name, "fan_in"))
    rows, columns = _fans(shape, given)
    fans = {"fan_in": rows, "fan_out": columns, "fan_avg": (rows + columns) / 2}
    return (scale / fans[mode]) ** 0.5


def _fans(shape: tuple[int, ...], given: Mapping[str, Any]) -> tuple[float, float]:
    """Fan-in and fan-out as `jax.nn.initializers` count them."""

    def size(name: str, default: Any) -> int:
        places = given.get(name, default)
        places = (places,) if isinstance(places, int) else places
        return math.prod(shape[i] for i in places)

    rows, columns = size("in_axis", -2), size("out_axis", -1)
    every = math.prod(shape) / size("batch_axis", ())
    return every / columns, every / rows


def _scaled_attention(model: Module, base: Module) -> Module:
    narrow = {}

    def remember(path: str, module: Module) -> Module:
        narrow[path] = module
        return module

    def scaled(path: str, module: Module) -> Module:
        other = narrow.get(path)
        if isinstance(module, Attention) and isinstance(other, Attention):
            if module.width != other.width and other.scale is not None:
                scale = other.scale * other.width / module.width
                return dataclasses.replace(module, scale=scale)
        return module

    map_modules(remember, base)
    return map_modules(scaled, model)


def _not_one(factors: Mapping[str, float]) -> dict[str, float]:
    return {path: factor for path, factor in factors.items() if factor != 1.0}
