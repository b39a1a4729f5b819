"""Declarations, paths, taps: what everything else in jaxdl is made of."""

from jaxdl.core import init, tree
from jaxdl.core.derive import (
    abstract,
    abstract_state,
    axes,
    declarations,
    mask,
    paths,
    roles,
)
from jaxdl.core.edit import at, by_layer
from jaxdl.core.fields import Size
from jaxdl.core.keys import MISSING, OptionalKey, split
from jaxdl.core.module import (
    Module,
    check_params,
    declared,
    fill,
    inline,
    is_stateful,
    map_modules,
    part,
    scoped,
)
from jaxdl.core.naming import expect, scope
from jaxdl.core.param import Param, State
from jaxdl.core.precision import Policy
from jaxdl.core.table import summary
from jaxdl.core.tap_primitive import save_taps, tap
from jaxdl.core.transforms import capture, patch, taps
from jaxdl.core.tree import count, nbytes

__all__ = [
    "Size",
    "abstract",
    "abstract_state",
    "at",
    "axes",
    "by_layer",
    "capture",
    "check_params",
    "count",
    "declarations",
    "declared",
    "expect",
    "fill",
    "init",
    "inline",
    "is_stateful",
    "map_modules",
    "mask",
    "MISSING",
    "Module",
    "nbytes",
    "OptionalKey",
    "Param",
    "part",
    "patch",
    "paths",
    "Policy",
    "roles",
    "save_taps",
    "scope",
    "scoped",
    "split",
    "State",
    "summary",
    "tap",
    "taps",
    "tree",
]
