"""Few-shot learning on the implicit core: episodes, networks, methods, evaluation."""

from metagrad.fewshot.algorithms import (
    ANIL,
    BOIL,
    FOMAML,
    IMAML,
    MAML,
    R2D2,
    AdaptsWeights,
    Algorithm,
    Bilevel,
    Inner,
    ITDBiO,
    MemoryReduced,
    MetaLoss,
    MetaSGD,
    Method,
    ProtoNet,
    Reptile,
    classification,
    query_loss,
    support_loss,
)
from metagrad.fewshot.check_network import NetworkCheck, admit, check_network
from metagrad.fewshot.chunks import Chunks
from metagrad.fewshot.disjoint import disjoint_tasks
from metagrad.fewshot.dropout import dropout_masks
from metagrad.fewshot.episodes import EpisodeSampler
from metagrad.fewshot.evaluate import Evaluation, evaluate
from metagrad.fewshot.head import Head
from metagrad.fewshot.losses import BinaryCrossEntropy, CrossEntropy, ExampleLoss, SquaredError, accuracy
from metagrad.fewshot.meta import Metrics, meta_gradient
from metagrad.fewshot.models import MLP, Conv4, ResNet12
from metagrad.fewshot.norms import is_transductive
from metagrad.fewshot.sinusoids import Sinusoids
from metagrad.fewshot.task_set import Warm, warm_meta_gradient
from metagrad.fewshot.tasks import Batch, Tasks, TaskSource, WeightedBatch, group_tasks
from metagrad.fewshot.variation import Variation
from metagrad.fewshot.views import Views

__all__ = [
    "ANIL",
    "BOIL",
    "FOMAML",
    "IMAML",
    "MAML",
    "MLP",
    "R2D2",
    "AdaptsWeights",
    "Algorithm",
    "Batch",
    "Bilevel",
    "BinaryCrossEntropy",
    "Chunks",
    "Conv4",
    "CrossEntropy",
    "EpisodeSampler",
    "Evaluation",
    "ExampleLoss",
    "Head",
    "ITDBiO",
    "Inner",
    "MemoryReduced",
    "MetaLoss",
    "MetaSGD",
    "Method",
    "Metrics",
    "NetworkCheck",
    "ProtoNet",
    "Reptile",
    "ResNet12",
    "Sinusoids",
    "SquaredError",
    "TaskSource",
    "Tasks",
    "Variation",
    "Views",
    "Warm",
    "WeightedBatch",
    "accuracy",
    "admit",
    "check_network",
    "classification",
    "disjoint_tasks",
    "dropout_masks",
    "evaluate",
    "group_tasks",
    "is_transductive",
    "meta_gradient",
    "query_loss",
    "support_loss",
    "warm_meta_gradient",
]
