"""Few-shot learning on the implicit core: episodes, networks, methods, evaluation."""

from metagrad.fewshot.admit import NetworkCheck, admit, check_network
from metagrad.fewshot.algorithms import (
    ANIL,
    BOIL,
    FOMAML,
    IMAML,
    MAML,
    R2D2,
    Algorithm,
    ITDBiO,
    MemoryReduced,
    MetaLoss,
    MetaSGD,
    ProtoNet,
    Reptile,
    classification,
)
from metagrad.fewshot.episodes import Batch, EpisodeSampler, Tasks
from metagrad.fewshot.evaluate import Evaluation, evaluate
from metagrad.fewshot.meta import Chunks, Metrics, meta_gradient
from metagrad.fewshot.models import MLP, Conv4, ResNet12
from metagrad.fewshot.norms import is_transductive
from metagrad.fewshot.sinusoids import Sinusoids
from metagrad.fewshot.source import TaskSource
from metagrad.fewshot.task_set import Warm, warm_meta_gradient

__all__ = [
    "ANIL",
    "BOIL",
    "FOMAML",
    "IMAML",
    "MAML",
    "MLP",
    "R2D2",
    "Algorithm",
    "Batch",
    "Chunks",
    "Conv4",
    "EpisodeSampler",
    "Evaluation",
    "ITDBiO",
    "MemoryReduced",
    "MetaLoss",
    "MetaSGD",
    "Metrics",
    "NetworkCheck",
    "ProtoNet",
    "Reptile",
    "ResNet12",
    "Sinusoids",
    "TaskSource",
    "Tasks",
    "Warm",
    "admit",
    "check_network",
    "classification",
    "evaluate",
    "is_transductive",
    "meta_gradient",
    "warm_meta_gradient",
]
