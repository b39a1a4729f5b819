"""Model families, each a composition of layers: one file for a family."""

from jaxdl.models.cnn import cnn as cnn
from jaxdl.models.contrastive import Contrastive as Contrastive
from jaxdl.models.contrastive import ContrastiveConfig as ContrastiveConfig
from jaxdl.models.contrastive import ImageTower as ImageTower
from jaxdl.models.contrastive import TextTower as TextTower
from jaxdl.models.convnext import ConvNeXt as ConvNeXt
from jaxdl.models.decoder import Decoder as Decoder
from jaxdl.models.decoder import DecoderConfig as DecoderConfig
from jaxdl.models.decoder import Layer as Layer
from jaxdl.models.encoder import Classifier as Classifier
from jaxdl.models.encoder import Encoder as Encoder
from jaxdl.models.encoder import EncoderConfig as EncoderConfig
from jaxdl.models.encoder import MaskedHead as MaskedHead
from jaxdl.models.mlp import mlp as mlp
from jaxdl.models.resnet import ResNet as ResNet
from jaxdl.models.resnet import resnet18 as resnet18
from jaxdl.models.resnet import resnet34 as resnet34
from jaxdl.models.resnet import resnet50 as resnet50
from jaxdl.models.t5 import T5 as T5
from jaxdl.models.t5 import T5Config as T5Config
from jaxdl.models.transformer import TransformerConfig as TransformerConfig
from jaxdl.models.vit import ProbeHead as ProbeHead
from jaxdl.models.vit import ViT as ViT
from jaxdl.models.vit import ViTConfig as ViTConfig
from jaxdl.models.whisper import Whisper as Whisper
from jaxdl.models.whisper import WhisperConfig as WhisperConfig
