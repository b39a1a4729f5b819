"""Layers. Each is a hashable value, called `layer(params, x, ...)`."""

from jaxdl.nn.attention import Attention as Attention
from jaxdl.nn.combine import Parallel as Parallel
from jaxdl.nn.combine import Repeat as Repeat
from jaxdl.nn.combine import Residual as Residual
from jaxdl.nn.combine import Sequential as Sequential
from jaxdl.nn.conv import Conv as Conv
from jaxdl.nn.dropout import Dropout as Dropout
from jaxdl.nn.dropout import DropPath as DropPath
from jaxdl.nn.feed_forward import FeedForward as FeedForward
from jaxdl.nn.linear import Bilinear as Bilinear
from jaxdl.nn.linear import Einsum as Einsum
from jaxdl.nn.linear import Embedding as Embedding
from jaxdl.nn.linear import Linear as Linear
from jaxdl.nn.norm import BatchNorm as BatchNorm
from jaxdl.nn.norm import GroupNorm as GroupNorm
from jaxdl.nn.norm import InstanceNorm as InstanceNorm
from jaxdl.nn.norm import LayerNorm as LayerNorm
from jaxdl.nn.norm import RMSNorm as RMSNorm
from jaxdl.nn.pool import AvgPool as AvgPool
from jaxdl.nn.pool import Flatten as Flatten
from jaxdl.nn.pool import GlobalAvgPool as GlobalAvgPool
from jaxdl.nn.pool import GlobalMaxPool as GlobalMaxPool
from jaxdl.nn.pool import MaxPool as MaxPool
from jaxdl.nn.position import RoPE as RoPE
from jaxdl.nn.routing import keywords as keywords
