"""Tasks that share no example: what an interval over classes and images is taken over."""

from __future__ import annotations

import torch
from torch import Tensor

from metagrad import tree
from metagrad.fewshot.episodes import EpisodeSampler, labelled, rotated
from metagrad.fewshot.tasks import Tasks


def disjoint_tasks(sampler: EpisodeSampler, *, generator: torch.Generator) -> Tasks:
    """Draw as many tasks as the examples give without using one twice.

    Tasks that a sampler draws anew each time share classes and examples, so an interval over them says how well this
    very data set is known, and leaves out the chance that picked its classes and examples (Lafargue et al., "Oops, I
    Sampled it Again", 2024, arXiv 2409.02850). These are independent given the classes.

    In each round the classes are put in a random order and cut into tasks; a class takes part as long as it has
    ``shots + queries`` examples left, and a round needs ``ways`` such classes.

    Parameters
    ----------
    sampler:
        its classes, ways, shots, queries and rotations; ways and shots are numbers, not ranges.
    generator:
        on the device of the examples.

    Returns
    -------
    Tasks
        at least one; as :class:`EpisodeSampler` returns them.

    Raises
    ------
    ValueError
        for a range of ways or shots.

    Examples
    --------
    >>> import torch
    >>> from metagrad.data import Classes
    >>> from metagrad.fewshot import EpisodeSampler
    >>> classes = Classes.from_arrays(torch.arange(60.0)[:, None], torch.arange(60) % 6)
    >>> sampler = EpisodeSampler(classes=classes, ways=3, shots=1, queries=2)
    >>> tasks = disjoint_tasks(sampler, generator=torch.Generator().manual_seed(0))
    >>> len(tasks), len(torch.cat([tasks.support.x, tasks.query.x], 1).unique())
    (6, 54)
    """
    ways, shots = sampler.ways, sampler.shots
    if not isinstance(ways, int) or not isinstance(shots, int):
        raise ValueError(f"ways and shots must be numbers, got {ways} and {shots}")
    each, classes = shots + sampler.queries, sampler.classes
    counts: list[int] = classes.counts.tolist()
    order = [torch.randperm(count, generator=generator, device=classes.device) for count in counts]
    chosen: list[list[int]] = []
    rows: list[Tensor] = []
    for used in range(0, max(counts), each):
        able = torch.tensor([number for number, count in enumerate(counts) if count >= used + each])
        mixed = able[torch.randperm(len(able), generator=generator, device=classes.device).cpu()].tolist()
        for first in range(0, len(mixed) - ways + 1, ways):
            task = mixed[first : first + ways]
            chosen.append(task)
            rows.append(torch.stack([classes.first[c] + order[c][used : used + each] for c in task]))
    number = torch.tensor(chosen, device=classes.device)
    places = torch.stack(rows)
    examples = tree.map_tensors(lambda leaf: leaf[places], classes.data)
    if sampler.rotations:
        examples = rotated(examples, generator)
    return labelled(examples, number, shots)


class DisjointTasks:
    """Tasks that share no example, as a source: it hands them out one after the other.

    Parameters
    ----------
    tasks:
        all of them.
    """

    def __init__(self, tasks: Tasks) -> None:
        self.tasks, self._next = tasks, 0

    def __call__(self, num_tasks: int, *, generator: torch.Generator) -> Tasks:
        """Return the next ones; nothing is drawn.

        Raises
        ------
        ValueError
            if there are fewer.
        """
        first, self._next = self._next, self._next + num_tasks
        if self._next > len(self.tasks):
            raise ValueError(
                f"there are only {len(self.tasks)} tasks without a common example, but {self._next} were requested"
            )
        return self.tasks.part(first, self._next)
