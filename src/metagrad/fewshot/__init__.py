"""Few-shot learning on the implicit core: episodes, networks, methods, evaluation."""

from metagrad.fewshot.admit import admit
from metagrad.fewshot.algorithms import FOMAML, IMAML, MAML, Algorithm, MetaLoss, classification
from metagrad.fewshot.episodes import Batch, EpisodeSampler, Tasks
from metagrad.fewshot.evaluate import Evaluation, evaluate
from metagrad.fewshot.meta import Chunks, Metrics, meta_gradient
from metagrad.fewshot.models import MLP, Conv4
from metagrad.fewshot.norms import is_transductive
from metagrad.fewshot.sinusoids import Sinusoids

__all__ = [
    "FOMAML",
    "IMAML",
    "MAML",
    "MLP",
    "Algorithm",
    "Batch",
    "Chunks",
    "Conv4",
    "EpisodeSampler",
    "Evaluation",
    "MetaLoss",
    "Metrics",
    "Sinusoids",
    "Tasks",
    "admit",
    "classification",
    "evaluate",
    "is_transductive",
    "meta_gradient",
]
