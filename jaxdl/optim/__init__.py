"""What optax lacks: optimisers, small states, muP, and rates by path."""

from jaxdl.optim.by_path import decay_mask as decay_mask
from jaxdl.optim.by_path import freeze as freeze
from jaxdl.optim.by_path import scale_by_path as scale_by_path
from jaxdl.optim.coordinates import Coordinates as Coordinates
from jaxdl.optim.coordinates import coordinate_check as coordinate_check
from jaxdl.optim.coordinates import plot_coordinates as plot_coordinates
from jaxdl.optim.eigenbasis import scale_by_soap as scale_by_soap
from jaxdl.optim.eigenbasis import soap as soap
from jaxdl.optim.moments import adamw_8bit as adamw_8bit
from jaxdl.optim.moments import adamw_bf16 as adamw_bf16
from jaxdl.optim.moments import scale_by_adam_8bit as scale_by_adam_8bit
from jaxdl.optim.moments import scale_by_adam_bf16 as scale_by_adam_bf16
from jaxdl.optim.orthogonal import muon as muon
from jaxdl.optim.orthogonal import scale_by_muon as scale_by_muon
from jaxdl.optim.parametrisation import Mup as Mup
from jaxdl.optim.parametrisation import mup as mup
from jaxdl.optim.rounding import round_stochastically as round_stochastically
from jaxdl.optim.rounding import stochastic_rounding as stochastic_rounding
