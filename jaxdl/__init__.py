"""A functional deep learning library for JAX.

A model is a hashable value that declares its parameters once, and is a pure function of
a plain parameter pytree.
"""

from jaxdl import nn as nn
from jaxdl.core import *  # noqa: F403

__version__ = "0.1.0"
