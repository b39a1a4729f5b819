"""Arrays over many devices: meshes, rules, shardings, and what they cost."""

from jaxdl.core.layout import Layout as Layout
from jaxdl.core.layout import constrain as constrain
from jaxdl.core.layout import current as current
from jaxdl.core.layout import use as use
from jaxdl.shard.explaining import Explanation as Explanation
from jaxdl.shard.explaining import Finding as Finding
from jaxdl.shard.explaining import explain as explain
from jaxdl.shard.hlo import Collective as Collective
from jaxdl.shard.hlo import collectives as collectives
from jaxdl.shard.meshes import mesh as mesh
from jaxdl.shard.placing import init as init
from jaxdl.shard.placing import optimizer_state as optimizer_state
from jaxdl.shard.placing import place as place
from jaxdl.shard.placing import shardings as shardings
from jaxdl.shard.rules import DATA as DATA
from jaxdl.shard.rules import EXPERT as EXPERT
from jaxdl.shard.rules import FSDP as FSDP
from jaxdl.shard.rules import FSDP_TENSOR as FSDP_TENSOR
from jaxdl.shard.rules import SEQUENCE as SEQUENCE
from jaxdl.shard.rules import TENSOR as TENSOR
from jaxdl.shard.rules import ZERO1 as ZERO1
from jaxdl.shard.rules import Rules as Rules
