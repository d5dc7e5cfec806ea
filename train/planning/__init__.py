"""Planning: a config and a pod -> whether it fits, how fast it goes, what it costs, without a pod.

`..chips` and `topologies` say what there is to rent, `arithmetic` estimates without a compiler,
`candidates` lists the ways to run a config, `compiling` asks the TPU's compiler (`options`: how),
`timing` adds up its cycles (`kernels`: where it says none; `purposes`: what for) and its exchanges
(`links`); `plan` puts it together, `advice` and `search` change what does not fit or is slow,
`tables` and `page` show it.
"""

from .advice import advice, flags_of
from .candidates import check_fits_mesh, fastest
from .compiling import Phase
from .page import page
from .plan import Plan, as_json, plan_by_arithmetic, plan_by_compiler, the_step
from .search import COMPILED, search
from .tables import lines_of
from .topologies import Topology, parse_topology

__all__ = [
    "COMPILED",
    "Phase",
    "Plan",
    "Topology",
    "advice",
    "as_json",
    "check_fits_mesh",
    "fastest",
    "flags_of",
    "lines_of",
    "page",
    "parse_topology",
    "plan_by_arithmetic",
    "plan_by_compiler",
    "search",
    "the_step",
]
