"""What optax lacks for trees with paths: rates, masks and freezing by pattern."""

from jaxdl.optim.by_path import decay_mask as decay_mask
from jaxdl.optim.by_path import freeze as freeze
from jaxdl.optim.by_path import scale_by_path as scale_by_path
