"""Text from language models: prompts are read once, then the loop is on the device."""

from jaxdl.generate.beam import Beams as Beams
from jaxdl.generate.beam import beam_search as beam_search
from jaxdl.generate.loop import Generated as Generated
from jaxdl.generate.loop import generate as generate
from jaxdl.generate.prefix import Prefix as Prefix
from jaxdl.generate.prefix import remember as remember
from jaxdl.generate.prompts import left_padded as left_padded
from jaxdl.generate.sampling import Chain as Chain
from jaxdl.generate.sampling import History as History
from jaxdl.generate.sampling import chain as chain
from jaxdl.generate.sampling import constrain as constrain
from jaxdl.generate.sampling import greedy as greedy
from jaxdl.generate.sampling import min_p as min_p
from jaxdl.generate.sampling import repetition_penalty as repetition_penalty
from jaxdl.generate.sampling import temperature as temperature
from jaxdl.generate.sampling import top_k as top_k
from jaxdl.generate.sampling import top_p as top_p
from jaxdl.generate.session import Session as Session
from jaxdl.generate.source import Conditioned as Conditioned
from jaxdl.generate.source import conditioned as conditioned
from jaxdl.generate.speculative import Speculated as Speculated
from jaxdl.generate.speculative import speculate as speculate
from jaxdl.generate.streaming import stream as stream
from jaxdl.generate.streaming import text_of as text_of
