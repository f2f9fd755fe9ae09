"""Meta-learning methods, one file a family."""

from metagrad.fewshot.algorithms.base import AdaptsWeights, Algorithm, MetaLoss, classification
from metagrad.fewshot.algorithms.imaml import IMAML
from metagrad.fewshot.algorithms.learned import summary
from metagrad.fewshot.algorithms.maml import FOMAML, MAML

__all__ = ["FOMAML", "IMAML", "MAML", "AdaptsWeights", "Algorithm", "MetaLoss", "classification", "summary"]
