"""One call from an experiment to its result."""

from __future__ import annotations

import contextlib
import datetime
import time
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import cast

import torch
from torch import nn

from metagrad.data import Progress
from metagrad.distributed import ALONE, Ranks
from metagrad.errors import DivergedError, MetagradError, MetagradWarning, NotFiniteError, in_short
from metagrad.experiment.episodes import episodes_of
from metagrad.experiment.estimate import in_words
from metagrad.experiment.experiment import Experiment
from metagrad.experiment.init import Weights, copy_weights, read_file
from metagrad.experiment.loop import Event, Outcome, train_run
from metagrad.experiment.pretrained import extractor_of, feature_shape
from metagrad.experiment.run import Run
from metagrad.experiment.setup import build, choose_device, open_sources
from metagrad.experiment.sources import Sources, open_tasks
from metagrad.experiment.whitening import require_layer
from metagrad.fewshot import Algorithm, evaluate, meta_gradient, warm_meta_gradient
from metagrad.fewshot.algorithms.base import HasInner
from metagrad.named_code import name_of
from metagrad.seeds import Seeds
from metagrad.torch_modes import default_modes
from metagrad.tree import Params


@default_modes()
def train(
    experiment: Experiment,
    run: str | Path,
    *,
    resume: bool = False,
    init: str | Path | None = None,
    data_dir: str | Path | None = None,
    report: Callable[[Event], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Outcome:
    """Meta-train an experiment in a run directory: metrics, checkpoints and the result are in it.

    Parameters
    ----------
    run:
        the directory; a new one is made.
    resume:
        continue from the run's last checkpoint, bit for bit what an uninterrupted run would have done; if there is no
        such directory, begin. The experiment may ask for more meta-steps than before.
    init:
        initial weights: a run directory (its best), also of another method or other ways; a model file; or a
        ``state_dict`` in safetensors. The first :class:`Event` lists which are copied, which stay random and which are
        not used. They are validated before the first meta-step, so the run's best weights are never worse. A resumed
        run has a checkpoint instead, unless it stopped too early for one.
    data_dir:
        folder with a data set's original files; for ``"folder"``, the folder or zip of class folders itself.
    report:
        called with each :class:`Event`: a line of ``metrics.jsonl``. ``None``: print each validation with the time
        left.
    stop:
        called after every meta-step; if it returns true, training saves its state and returns.
    progress:
        called with (done, total, what) while a data set is prepared.
    ranks:
        the processes that share the work: see :func:`metagrad.distributed.joined`.

    Returns
    -------
    Outcome
        the step that was reached, and the result of the test tasks; ``None`` if ``stop`` ended training.

    Raises
    ------
    MetagradError
        for an experiment that does not fit together, a directory that is in use, a loss that is not finite.

    Examples
    --------
    >>> import tempfile
    >>> from metagrad import Experiment, train
    >>> from metagrad.experiment import Budget, MLPConfig
    >>> from metagrad.fewshot import MAML, Sinusoids, SquaredError
    >>> experiment = Experiment(tasks=Sinusoids(shots=5, queries=5), network=MLPConfig(hidden=(20,)),
    ...                         method=MAML(inner_lr=0.01, loss=SquaredError()),
    ...                         budget=Budget(meta_steps=20, tasks_per_step=4, val_tasks=4, test_tasks=8))
    >>> train(experiment, tempfile.mkdtemp(), report=lambda event: None).result["metric"]
    'test_squared_error'
    """
    begin: Weights | None = None
    folder = Path(run)
    if resume and (folder / "config.json").exists():
        opened = Run.open(folder, experiment=experiment)
        sources = open_sources(opened, data_dir=data_dir, device=experiment.compute.device, progress=progress)
        if init is not None and not opened.has("last"):  # it stopped before it had saved them
            begin = read_weights(init)
    else:
        resume = False
        begin = None if init is None else read_weights(init)
        sources = opened_for(experiment, data_dir=data_dir, init=begin, progress=progress)
        for note in sources.notes:
            warnings.warn(note, MetagradWarning, stacklevel=2)
        opened = Run.create(folder, experiment, sources, init=None if begin is None else begin.where)
    with opened:
        if resume:
            opened.raise_meta_steps(experiment.meta_steps)
        report = report or (_PrintValidations() if ranks.first else lambda event: None)
        return train_run(opened, sources, resume=resume, init=begin, report=report, stop=stop, ranks=ranks)


class _PrintValidations:
    """Prints each validation in a line, the estimated time, and which initial weights were copied."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if "seconds_left" in event.line:
            print(in_words(event.line, event.meta_steps), flush=True)
            return
        began, before = self._first = self._first or (now, event.step)
        for line in event.line.get("init", ()):
            print(line, flush=True)
        names = [name for name in event.line if name.startswith("val_") and name != "val_ci95"]
        if not names:
            return
        left = ""
        if event.step > before:
            seconds = int((now - began) / (event.step - before) * (event.meta_steps - event.step))
            left = f", {datetime.timedelta(seconds=seconds)} left"
        metric, value = names[0].removeprefix("val_").replace("_", " "), event.line[names[0]]
        print(
            f"meta-step {event.step} of {event.meta_steps}: validation {metric} {value:.3g} ± "
            f"{event.line['val_ci95']:.2g}{left}",
            flush=True,
        )


def read_weights(where: str | Path, *, code: Collection[str] = ()) -> Weights:
    """Return the weights in a run directory (the best), a model file, or any safetensors file.

    Raises
    ------
    MetagradError
        if there are none.
    """
    path = Path(where)
    return Weights(Run.open(path, code=code).load("best").theta if path.is_dir() else read_file(path), str(where))


@default_modes()
def opened_for(
    experiment: Experiment,
    *,
    data_dir: str | Path | None = None,
    split: object = None,
    strict: bool = False,
    init: Weights | None = None,
    progress: Progress | None = None,
) -> Sources:
    """Open an experiment's tasks, and refuse a network or a method that does not fit them.

    Raises
    ------
    MetagradError
        if the data are missing, or the network does not fit.
    """
    device = choose_device(experiment.compute.device)
    require_learns(experiment)
    sources = open_tasks(
        experiment.tasks,
        device=device,
        seeds=Seeds(experiment.seed),
        data_dir=None if data_dir is None else Path(data_dir),
        features=extractor_of(experiment.network),
        split=split,
        strict=strict,
        progress=progress,
    )
    require_fit(experiment, sources, init)
    return sources


def require_learns(experiment: Experiment) -> None:
    """Refuse a method that would learn nothing on frozen features, before these are computed.

    Raises
    ------
    MetagradError
        saying what to train.
    """
    shape, episodes = feature_shape(experiment.network), episodes_of(experiment.tasks)
    if shape is None:
        return
    method, model = build(experiment, shape, episodes.ways if episodes else 2)
    if not method.init(model):
        raise MetagradError(
            f"{name_of(method)} has nothing to learn on frozen features: train a layer on them (--body linear), or "
            "use them as they are, without training (metagrad adapt photos)"
        )


def require_fit(experiment: Experiment, sources: Sources, init: Weights | None = None) -> None:
    """Try the network, the method and the initial weights on one task, its meta-gradient too.

    Raises
    ------
    MetagradError
        saying what does not fit.
    """
    require_layer(experiment.network, sources)
    method, model = build(experiment, sources.inputs, sources.outputs)
    model = model.to(sources.device)
    theta = method.init(model)
    if init is not None:
        copy_weights(theta, init.weights, init.where)
    generator = Seeds(experiment.seed).generator("validation", sources.draws_on)
    try:
        evaluate(method, model, theta, sources.val, tasks=1, generator=generator)
        _try_gradient(method, model, theta, sources, experiment.seed)
    except MetagradError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise MetagradError(f"the network, the tasks and the loss do not fit together: {in_short(error)}") from error


def _try_gradient(method: Algorithm, model: nn.Module, theta: Params, sources: Sources, seed: int) -> None:
    """Take one training task's meta-gradient: an adjoint that the inner problem does not fit shows up only there."""
    # Numbers that go astray are not a matter of fit: training names the meta-step, and what to change.
    with contextlib.suppress(NotFiniteError, DivergedError, torch.linalg.LinAlgError):
        if sources.fixed is not None:
            warm_meta_gradient(cast(HasInner, method), model, theta, sources.fixed.tasks.part(0, 1), None)
        else:
            task = sources.train(1, generator=Seeds(seed).generator("tasks", sources.draws_on))
            meta_gradient(method, model, theta, task)
