"""Planning: what a program needs and takes on a target, without the target."""

from jaxdl.planning.chips import CHIPS as CHIPS
from jaxdl.planning.chips import Chip as Chip
from jaxdl.planning.flops import Flops as Flops
from jaxdl.planning.flops import count_flops as count_flops
