"""The methods by the name that `--method` takes. A new method of this package is a file here and a line below."""

from .base import Batch, Loss, Method
from .context import TaskContext
from .ewc import EWC, SSDEWC
from .finetune import Finetune
from .flymodel import FlyModel
from .heads import NCM, SLDA, Ridge
from .icarl import ICaRL
from .joint import Joint
from .l2 import L2
from .lwf import LwF
from .mas import MAS
from .sdmlp import SDMLPMethod
from .si import SI
from .ssd import SSD

METHODS: dict[str, type[Method]] = {
    "finetune": Finetune,
    "joint": Joint,
    "sdmlp": SDMLPMethod,
    "ssd": SSD,
    "ssd+ewc": SSDEWC,
    "ewc": EWC,
    "si": SI,
    "mas": MAS,
    "l2": L2,
    "lwf": LwF,
    "icarl": ICaRL,
    "flymodel": FlyModel,
    "ncm": NCM,
    "slda": SLDA,
    "ridge": Ridge,
}

__all__ = ["METHODS", "Batch", "Loss", "Method", "TaskContext"]
