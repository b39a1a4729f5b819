"""Published weights and tokenizers: read from disk, checked, and put in their place."""

from jaxdl.hub.files import HubError as HubError
from jaxdl.hub.mapping import Rule as Rule
from jaxdl.hub.pretrained import Pretrained as Pretrained
from jaxdl.hub.pretrained import load as load
from jaxdl.hub.pretrained import save as save
from jaxdl.hub.read import load_params as load_params
from jaxdl.hub.reshaping import Conv as Conv
from jaxdl.hub.reshaping import PairedRows as PairedRows
from jaxdl.hub.reshaping import Permute as Permute
from jaxdl.hub.reshaping import Plus as Plus
from jaxdl.hub.reshaping import Reshape as Reshape
from jaxdl.hub.reshaping import Transform as Transform
from jaxdl.hub.reshaping import Transpose as Transpose
from jaxdl.hub.reshaping import chain as chain
from jaxdl.hub.reshaping import conv as conv
from jaxdl.hub.reshaping import identity as identity
from jaxdl.hub.reshaping import transpose as transpose
from jaxdl.hub.tensors import Tensor as Tensor
from jaxdl.hub.tensors import Tensors as Tensors
from jaxdl.hub.tensors import of_arrays as of_arrays
from jaxdl.hub.tensors import open_tensors as open_tensors
from jaxdl.hub.tokenizer import TextStream as TextStream
from jaxdl.hub.tokenizer import Tokenizer as Tokenizer
from jaxdl.hub.tokenizer_files import open_tokenizer as open_tokenizer
from jaxdl.hub.tokenizer_gguf import gguf_tokenizer as gguf_tokenizer
from jaxdl.hub.write import save_params as save_params
