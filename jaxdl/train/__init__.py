"""Training: the state, the step, the loop, checkpoints, logs."""

from jaxdl.train.checkpoint import CheckpointError, Checkpoints
from jaxdl.train.logs import History, JsonLines, TensorBoard
from jaxdl.train.loop import fit
from jaxdl.train.peak import peak_flops
from jaxdl.train.plot import plot_history
from jaxdl.train.state import TrainState
from jaxdl.train.step import make_step

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "History",
    "JsonLines",
    "TensorBoard",
    "TrainState",
    "fit",
    "make_step",
    "peak_flops",
    "plot_history",
]
