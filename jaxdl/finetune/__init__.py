"""Fine-tuning: adapters, quantised bases, supervised examples, preferences."""

from jaxdl.finetune.adapters import DoRA as DoRA
from jaxdl.finetune.adapters import LoRA as LoRA
from jaxdl.finetune.adapting import dora as dora
from jaxdl.finetune.adapting import lora as lora
from jaxdl.finetune.adapting import merge as merge
from jaxdl.finetune.adapting import remove as remove
from jaxdl.finetune.partition import ADAPTERS as ADAPTERS
from jaxdl.finetune.partition import join as join
from jaxdl.finetune.partition import split as split
from jaxdl.finetune.partition import with_frozen as with_frozen
from jaxdl.finetune.preference import LogProbs as LogProbs
from jaxdl.finetune.preference import dpo_loss as dpo_loss
from jaxdl.finetune.preference import dpo_metrics as dpo_metrics
from jaxdl.finetune.preference import pair_log_probs as pair_log_probs
from jaxdl.finetune.preference import preference_loss as preference_loss
from jaxdl.finetune.preference import sequence_log_probs as sequence_log_probs
from jaxdl.finetune.quantization import dequantize as dequantize
from jaxdl.finetune.quantization import quantize as quantize
from jaxdl.finetune.quantized import QuantizedEmbedding as QuantizedEmbedding
from jaxdl.finetune.quantized import QuantizedLinear as QuantizedLinear
from jaxdl.finetune.saved import load_adapters as load_adapters
from jaxdl.finetune.saved import save_adapters as save_adapters
from jaxdl.finetune.supervised import conversation as conversation
from jaxdl.finetune.supervised import example as example
from jaxdl.finetune.supervised import supervised_loss as supervised_loss
