"""Real data, and batches of it as a function of the step."""

from jaxdl.data.batches import Batches as Batches
from jaxdl.data.batches import split as split
from jaxdl.data.files import ImageFolder as ImageFolder
from jaxdl.data.files import JSONLines as JSONLines
from jaxdl.data.files import Lines as Lines
from jaxdl.data.files import Tables as Tables
from jaxdl.data.files import Texts as Texts
from jaxdl.data.idx import read_idx as read_idx
from jaxdl.data.packing import pack as pack
from jaxdl.data.packing import pad as pad
from jaxdl.data.sources import FASHION_MNIST as FASHION_MNIST
from jaxdl.data.sources import digits as digits
from jaxdl.data.sources import fashion_mnist as fashion_mnist
from jaxdl.data.steps import ReadAhead as ReadAhead
from jaxdl.data.steps import Steps as Steps
from jaxdl.data.steps import rows_of as rows_of
from jaxdl.data.text import Characters as Characters
from jaxdl.data.text import TextWindows as TextWindows
from jaxdl.data.text import text as text
from jaxdl.data.tokens import PackedTokens as PackedTokens
from jaxdl.data.tokens import Tokens as Tokens
from jaxdl.data.tokens import write_tokens as write_tokens
