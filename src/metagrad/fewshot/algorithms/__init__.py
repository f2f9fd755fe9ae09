"""Meta-learning methods, one file a family."""

from metagrad.fewshot.algorithms.base import (
    AdaptsWeights,
    Algorithm,
    Inner,
    MetaLoss,
    Method,
    classification,
    query_loss,
    support_loss,
)
from metagrad.fewshot.algorithms.bilevel import Bilevel
from metagrad.fewshot.algorithms.closed_form import R2D2, ProtoNet
from metagrad.fewshot.algorithms.heads import ANIL, BOIL, ITDBiO, MemoryReduced
from metagrad.fewshot.algorithms.hyperparameters import summary
from metagrad.fewshot.algorithms.imaml import IMAML
from metagrad.fewshot.algorithms.maml import FOMAML, MAML, MetaSGD, Reptile

__all__ = [
    "ANIL",
    "BOIL",
    "FOMAML",
    "IMAML",
    "MAML",
    "R2D2",
    "AdaptsWeights",
    "Algorithm",
    "Bilevel",
    "ITDBiO",
    "Inner",
    "MemoryReduced",
    "MetaLoss",
    "MetaSGD",
    "Method",
    "ProtoNet",
    "Reptile",
    "classification",
    "query_loss",
    "summary",
    "support_loss",
]
