"""Random keys that may be absent: a key, None for "deterministic", or not given at all.

A module that draws random numbers takes `key=MISSING` and hands it on. Whoever needs
the key in the end tells the three apart: a key is used, None turns the randomness off,
and a key that nobody gave is an error, because a silently missing dropout is a wrong
result.
"""

from typing import Any

import jax


class Missing:
    """The type of `MISSING`: an argument that was not given."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = Missing()

OptionalKey = jax.Array | None | Missing


def split(key: OptionalKey, num: int) -> list[Any]:
    """Splits a key into `num`; None and MISSING give `num` of themselves.

    >>> split(None, 3)
    [None, None, None]
    """
    if key is None or isinstance(key, Missing):
        return [key] * num
    return list(jax.random.split(key, num))
