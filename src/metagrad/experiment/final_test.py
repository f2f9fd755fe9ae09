"""The final test: accuracy of the best weights on the test tasks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from metagrad.distributed import Ranks
from metagrad.experiment.class_mean import class_mean, gained
from metagrad.experiment.measure import generator_of, measured, source_of
from metagrad.experiment.precision import precision_context
from metagrad.experiment.pretrained import Pretrained
from metagrad.experiment.run import Run
from metagrad.experiment.sources import Sources
from metagrad.fewshot import Evaluation


def final_test(
    run: Run,
    sources: Sources,
    progress: dict[str, Any],
    report: Callable[[dict[str, Any]], None],
    stop: Callable[[], bool],
    ranks: Ranks,
) -> dict[str, Any] | None:
    """Evaluate the weights with the best validation on the test tasks, once; return ``None`` if ``stop`` ends it.

    Parameters
    ----------
    progress:
        the training's progress.
    report:
        called with ``{"tested": tasks, "of": tasks in all}``.
    """
    test_tasks = run.experiment.budget.test_tasks
    # Without test tasks: three times the validation tasks of training, 600 by default.
    split, tasks = ("test", test_tasks) if test_tasks else ("val", 3 * run.experiment.budget.val_tasks)

    def tell(done: int, total: int) -> None:
        report({"tested": done, "of": total})
        if ranks.sum(torch.tensor(float(stop()))) > 0:
            raise _StoppedError

    try:
        result, trained = measured(
            run, sources, split=split, tasks=tasks, seed=run.test_seed, progress=tell, ranks=ranks
        )  # fmt: skip
        result |= _over_class_mean(run, sources, split, trained, tell, ranks)
    except _StoppedError:
        return None
    result |= {
        "meta_steps": progress["step"],
        "train_seconds": round(progress["seconds"], 1),
        "peak_memory_mb": round(_peak_bytes() / 2**20),
    }
    run.write_measured("result.json", result, result["weights"])
    return result


class _StoppedError(Exception):
    """``stop`` ended the final test; the training is complete and saved."""


def _over_class_mean(
    run: Run, sources: Sources, split: str, trained: Evaluation, tell: Callable[[int, int], None], ranks: Ranks
) -> dict[str, Any]:
    """Return the gain over nearest class means of the same frozen features, if the network has any."""
    network = run.experiment.network
    if not isinstance(network, Pretrained) or not network.has_features or trained.metric != "accuracy":
        return {}
    source, _ = source_of(run, sources, split)
    with precision_context(run.experiment.compute.precision, sources.device):
        reference = class_mean(
            network, sources, source, tasks=trained.tasks, generator=generator_of(run, run.test_seed, sources.draws_on),
            progress=tell, ranks=ranks,
        )  # fmt: skip
    return {"class_mean": gained(trained, reference)}


def _peak_bytes() -> int:
    """Return the peak memory of this process."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
