r"""A GRU that tells two rhythms apart after hearing three of each: an own network, own tasks and an own loss.

    python examples/rhythms.py runs/rhythms

trains, or goes on where it was stopped, and measures. The same from the command, which needs no program at all:

    metagrad train rhythms:rhythms --network rhythms:Hearing --loss rhythms:smooth --metric metagrad.fewshot:accuracy \
        --method memory-reduced --l2 0.1 --outer-lr 0.02 --meta-steps 200 --tasks-per-step 8
"""

import sys

import torch
from torch import nn
from torch.nn import functional as F

from metagrad import Budget, Experiment, Outer, Run, report, train
from metagrad.fewshot import MemoryReduced, Tasks, accuracy


class Hearing(nn.Module):
    """A GRU, and a linear layer that reads its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(1, 12, batch_first=True), nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return two logits for each sequence ``(N, 12, 1)``."""
        return self.head(self.gru(x)[0][:, -1])


def rhythms(num_tasks: int, *, generator: torch.Generator) -> Tasks:
    """Draw tasks of two periods each; a sequence is one of them, from any place on."""
    period = 3 * 4 ** torch.rand(num_tasks, 2, 1, 1, 1, generator=generator)
    start = 20 * torch.rand(num_tasks, 2, 8, 1, 1, generator=generator)
    x = torch.sin(2 * torch.pi * (torch.arange(12.0)[:, None] + start) / period)
    y = torch.arange(2)[:, None].expand(num_tasks, 2, 8)
    return Tasks(*((x[:, :, at].flatten(1, 2), y[:, :, at].flatten(1)) for at in (slice(0, 3), slice(3, 8))))


def smooth(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of one task, its labels a little uncertain."""
    return F.cross_entropy(outputs, targets, label_smoothing=0.1)


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else "runs/rhythms"
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    method = MemoryReduced(l2=0.1, loss=smooth, metric=accuracy)
    budget = Budget(meta_steps=steps, tasks_per_step=8, val_tasks=50, test_tasks=100)
    experiment = Experiment(tasks=rhythms, network=Hearing, method=method, outer=Outer(lr=0.02), budget=budget)
    outcome = train(experiment, folder, resume=True, report=lambda event: print(event.step, event.line))
    print(outcome.result["metric"], outcome.result["value"], "±", outcome.result["ci95"])
    run = Run.open(folder, experiment=experiment)
    print("page:", report.write(run, f"{folder}/report.html"))
    print("relative error of the meta-gradient:", run.check(tasks=2)["error"])
