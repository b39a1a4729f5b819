"""Which kernel computes an attention, and a mark in the program that says so."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax

from jaxdl.core.mark_primitive import Choice, mark
from jaxdl.core.naming import current_path
from jaxdl.nn import splash
from jaxdl.nn.attend import Sight, attend, attend_fused
from jaxdl.nn.blockwise import attend_blockwise


class Options(NamedTuple):
    """What an attention asks for beside q, k and v; see `attend`."""

    sight: Sight
    scale: float
    softcap: float | None = None
    score_bias: jax.Array | None = None
    sinks: jax.Array | None = None
    drop: Callable[[jax.Array], jax.Array] | None = None


Implementation = str | Callable[..., jax.Array] | None


def dispatch(
    implementation: Implementation,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    ask: Options,
) -> jax.Array:
    """Attention [batch, query, heads, v_dim] by one kernel, or the best on a platform.

    A function in place of a name is called as `attend_blockwise` is.

    Raises ValueError if `implementation` names a kernel that cannot do what is asked.
    """
    if callable(implementation):
        y = _by_function(implementation, q, k, v, ask)
        return mark(y, "attention", Choice(_name(implementation), "handed in"))
    if implementation == "auto":
        choices = _best(q, k, v, ask)
    else:
        choices = [_chosen(implementation, q, k, v, ask)]
    runs = {each.platform: _runner(each.kernel, ask) for each in choices}
    default = runs.pop("")
    if runs:
        y = jax.lax.platform_dependent(q, k, v, default=default, **runs)
    else:
        y = default(q, k, v)
    return mark(y, "attention", *choices)


def check(implementation: Implementation, features: dict[str, Any]) -> None:
    """Raises ValueError for an unknown kernel, and for features that it lacks."""
    if callable(implementation):
        if features.get("dropout"):
            raise _refused("Attention", _name(implementation), "dropout")
        return
    if implementation not in (*_LACKS, None, "auto"):
        raise ValueError(
            f"Attention.implementation: expected None, auto, {', '.join(_LACKS)}, got "
            f"{implementation!r}"
        )
    for name in _LACKS.get(implementation or "", ()):
        if features.get(name):
            raise _refused("Attention", implementation, name)


_LACKS = {
    "xla": ("softcap", "sinks", "dropout"),
    "cudnn": ("softcap", "sinks", "dropout"),
    "splash": ("score_bias", "dropout"),
    "blockwise": ("dropout",),
}

_PLAIN = "plain"


def _by_function(function: Callable[..., jax.Array], q, k, v, ask: Options):
    given = {"scale": ask.scale, "softcap": ask.softcap, "sinks": ask.sinks}
    return function(q, k, v, ask.sight, score_bias=ask.score_bias, **given)


def _name(function: Callable[..., jax.Array]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _best(q, k, v, ask: Options) -> list[Choice]:
    """The kernel of every platform: its own if that can, blockwise otherwise."""
    if ask.drop is not None:
        return [Choice(_PLAIN, "dropout of the pattern, which no kernel has")]
    if q.shape[1] == 1:
        return [Choice(_PLAIN, "one query, whose scores are a single row")]
    reasons = {
        platform: (kernel, _refusal(kernel, q, k, v, ask))
        for platform, kernel in (("tpu", "splash"), ("cuda", "cudnn"))
    }
    choices = [
        Choice("blockwise", f"{kernel}: {reason}", platform)
        if reason
        else Choice(kernel, "", platform)
        for platform, (kernel, reason) in reasons.items()
    ]
    return [*choices, Choice("blockwise")]


def _chosen(implementation: str | None, q, k, v, ask: Options) -> Choice:
    """The kernel that was named."""
    if implementation is None:
        return Choice(_PLAIN, "implementation=None has taps of scores and pattern")
    reason = _refusal(implementation, q, k, v, ask)
    if reason:
        raise _refused(current_path(), implementation, reason)
    return Choice(implementation, "named by implementation")


def _refused(where: str, implementation: str | None, reason: str) -> ValueError:
    others = [name for name in ("blockwise", "auto") if name != implementation]
    return ValueError(
        f"{where}: implementation={implementation!r} cannot do this: {reason}; take "
        f"{' or '.join(map(repr, others))}, or None"
    )


def _refusal(kernel: str, q, k, v, ask: Options) -> str:
    """Why a kernel cannot do what is asked; "" if it can."""
    asked = {**ask._asdict(), "dropout": ask.drop}
    for name in _LACKS[kernel]:
        if asked[name] is not None:
            return name
    if kernel == "splash":
        return splash.refusal(q, k, v, ask.sight)
    if kernel == "cudnn":
        return _cudnn_refusal(q, k, v, ask)
    return ""


def _cudnn_refusal(q, k, v, ask: Options) -> str:
    """What JAX says against it, for the backward pass too."""

    def gradients(*arrays):
        y, pull = jax.vjp(_runner("cudnn", ask), *arrays)
        return pull(y)

    try:
        jax.eval_shape(gradients, q, k, v)
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return str(error).splitlines()[0].rstrip(".")
    return ""


def _runner(kernel: str, ask: Options) -> Callable[..., jax.Array]:
    """A kernel as a function of q, k and v alone."""
    sight, scale, softcap, score_bias, sinks, drop = ask
    bias = {"score_bias": score_bias}
    capped = {"scale": scale, "softcap": softcap, "sinks": sinks}
    if kernel == "splash":
        return functools.partial(splash.attend_splash, sight=sight, **capped)
    if kernel == "blockwise":
        return functools.partial(attend_blockwise, sight=sight, **capped, **bias)
    if kernel != _PLAIN:
        fused = functools.partial(attend_fused, sight=sight, scale=scale, **bias)
        return functools.partial(fused, implementation=kernel)
    plain = functools.partial(attend, visible=sight.visible(), blind=sight.blind)
    plain = functools.partial(plain, **capped, **bias)
    return plain if drop is None else functools.partial(plain, drop=drop)
