"""Planning: what a program needs and takes on a target, without the target."""

from jaxdl.planning.backends import Backends as Backends
from jaxdl.planning.backends import which_backend as which_backend
from jaxdl.planning.checks import assert_collectives as assert_collectives
from jaxdl.planning.checks import assert_fits as assert_fits
from jaxdl.planning.chips import CHIPS as CHIPS
from jaxdl.planning.chips import Chip as Chip
from jaxdl.planning.flops import Flops as Flops
from jaxdl.planning.flops import count_flops as count_flops
from jaxdl.planning.out_of_memory import OutOfMemory as OutOfMemory
from jaxdl.planning.planner import Plan as Plan
from jaxdl.planning.planner import plan as plan
from jaxdl.planning.report import Report as Report
from jaxdl.planning.targets import Target as Target
from jaxdl.planning.targets import target as target
