"""An experiment as a value; trained, resumed, measured and kept in a run directory."""

from metagrad.experiment.api import train
from metagrad.experiment.episodes import Episodes
from metagrad.experiment.experiment import Budget, Compute, Experiment, Outer
from metagrad.experiment.loop import Event, Outcome
from metagrad.experiment.networks import Conv4Config, MLPConfig, NetworkConfig, ResNet12Config
from metagrad.experiment.pretrained import Pretrained
from metagrad.experiment.run import Run
from metagrad.experiment.sources import Sources, TaskSet

__all__ = [
    "Budget",
    "Compute",
    "Conv4Config",
    "Episodes",
    "Event",
    "Experiment",
    "MLPConfig",
    "NetworkConfig",
    "Outcome",
    "Outer",
    "Pretrained",
    "ResNet12Config",
    "Run",
    "Sources",
    "TaskSet",
    "train",
]
