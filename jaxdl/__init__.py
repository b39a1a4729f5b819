"""A functional deep learning library for JAX.

A model is a hashable value that declares its parameters once, and is a pure function of
a plain parameter pytree.
"""

from importlib import metadata as _metadata

from jaxdl import data as data
from jaxdl import finetune as finetune
from jaxdl import generate as generate
from jaxdl import hub as hub
from jaxdl import losses as losses
from jaxdl import metrics as metrics
from jaxdl import models as models
from jaxdl import nn as nn
from jaxdl import optim as optim
from jaxdl import planning as planning
from jaxdl import shard as shard
from jaxdl import testing as testing
from jaxdl import train as train
from jaxdl.core import *  # noqa: F403
from jaxdl.planning import plan as plan
from jaxdl.planning import which_backend as which_backend
from jaxdl.shard import mesh as mesh

try:
    __version__ = _metadata.version("jaxdl")
except _metadata.PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0"
