"""Training: the state, the step, the loop, checkpoints, logs."""

from jaxdl.planning.chips import peak_flops as peak_flops
from jaxdl.train.bisecting import Difference as Difference
from jaxdl.train.bisecting import Run as Run
from jaxdl.train.bisecting import bisect as bisect
from jaxdl.train.checkpoint import CheckpointError as CheckpointError
from jaxdl.train.checkpoint import Checkpoints as Checkpoints
from jaxdl.train.logs import History as History
from jaxdl.train.logs import JsonLines as JsonLines
from jaxdl.train.logs import TensorBoard as TensorBoard
from jaxdl.train.loop import fit as fit
from jaxdl.train.plot import plot_history as plot_history
from jaxdl.train.state import TrainState as TrainState
from jaxdl.train.step import make_step as make_step
from jaxdl.train.watch import Profile as Profile
