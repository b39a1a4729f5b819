"""Real data, and batches of it as a function of the step."""

from jaxdl.data.batches import Batches as Batches
from jaxdl.data.batches import split as split
from jaxdl.data.idx import read_idx as read_idx
from jaxdl.data.packing import pack as pack
from jaxdl.data.packing import pad as pad
from jaxdl.data.sources import FASHION_MNIST as FASHION_MNIST
from jaxdl.data.sources import digits as digits
from jaxdl.data.sources import fashion_mnist as fashion_mnist
from jaxdl.data.text import Characters as Characters
from jaxdl.data.text import TextWindows as TextWindows
from jaxdl.data.text import text as text
