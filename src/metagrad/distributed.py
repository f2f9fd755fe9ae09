"""Several processes (ranks) that share each meta-step's tasks, and sums over all ranks.

``torchrun`` starts the processes and gives each its rank through the environment. Every rank draws the same tasks from
the same seed and computes its own share of them; it sends one buffer a meta-step. Without ``torchrun`` there is one
rank, and ``torch.distributed`` is not used.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from metagrad.errors import MetagradError
from metagrad.tree import Params

_PATIENCE = timedelta(minutes=10)  # a rank may prepare a data set while the others wait


@dataclass(frozen=True)
class Ranks:
    """A process's place among ``world`` of them.

    Attributes
    ----------
    rank:
        0 to world − 1; rank 0 writes the run directory and talks to the user.
    world:
        number of processes.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def mine(self, tasks: int) -> tuple[int, int]:
        """Return the half-open range of this rank's share of ``tasks``; shares differ by one task at most."""
        return self.rank * tasks // self.world, (self.rank + 1) * tasks // self.world

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of ``value`` over ranks; in place where there are several.

        Raises
        ------
        MetagradError
            if another rank is gone.
        """
        if self.world > 1:
            with _lost_ranks():
                dist.all_reduce(value)
        return value

    def sum_gradients(self, theta: Params, share: float, numbers: Tensor) -> Tensor:
        """Replace every gradient by its mean over all tasks; return the sum of ``numbers`` over ranks.

        Parameters
        ----------
        theta:
            each ``grad`` is the mean over this rank's tasks.
        share:
            this rank's fraction of all tasks.
        numbers:
            ``(K,)``, travels in the same message.
        """
        if self.world == 1:
            return numbers
        leaves = [leaf for leaf in theta.values() if leaf.grad is not None]
        # One message: 28,000 to 112,000 numbers cost no more than one, eighteen messages cost eighteen times as much.
        buffer = torch.cat([leaf.grad.flatten() * share for leaf in leaves if leaf.grad is not None] + [numbers])
        parts = self.sum(buffer).split([leaf.numel() for leaf in leaves] + [len(numbers)])
        for leaf, part in zip(leaves, parts[:-1], strict=True):
            leaf.grad = part.view(leaf.shape)
        return parts[-1]

    def from_first(self, value: Any) -> Any:
        """Return rank 0's ``value``, any object that can be pickled; raise it if it is an exception."""
        if self.world > 1:
            box = [value]
            with _lost_ranks():
                dist.broadcast_object_list(box, src=0)
            value = box[0]
        if isinstance(value, Exception):
            raise value
        return value

    def require_same(self, facts: Mapping[str, Any]) -> None:
        """Raise MetagradError naming the first rank and fact that differs from rank 0's."""
        if self.world == 1:
            return
        all_facts: list[Any] = [None] * self.world
        with _lost_ranks():
            dist.all_gather_object(all_facts, dict(facts))
        for rank, theirs in enumerate(all_facts):
            for name, value in all_facts[0].items():
                if theirs.get(name) != value:
                    raise MetagradError(
                        f"rank {rank} has {name} {theirs.get(name)!r}, rank 0 has {value!r}: start all ranks alike"
                    )


ALONE = Ranks()


def _number(variable: str, default: int | None = None) -> int:
    """Return the whole number in an environment variable; refuse anything else."""
    text = os.environ.get(variable)
    if text is None and default is not None:
        return default
    if text is None or not re.fullmatch("[0-9]{1,9}", text):
        what = "is not set" if text is None else f"is {text[:40]!r}"
        raise MetagradError(
            f"the environment variable {variable} {what}, not a whole number as torchrun sets it: "
            "start with torchrun, or unset WORLD_SIZE and the like"
        )
    return int(text)


def started() -> bool:
    """Whether ``torchrun`` (or another launcher with its variables) started this process as one of several."""
    return _number("WORLD_SIZE", 1) > 1


def restarted() -> bool:
    """Whether ``torchrun`` restarted this process after a rank died."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0) > 0


def launch_id() -> str | None:
    """Return ``torchrun``'s name of this launch, the same after a restart; ``None`` without a launch."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if name == "none" else name


def local_device(name: str) -> str:
    """Return the GPU of this rank for plain ``cuda``; any other name as it is."""
    return f"cuda:{_number('LOCAL_RANK')}" if name == "cuda" and "LOCAL_RANK" in os.environ else name


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other ranks inside a ``with`` block; a process that is alone has nothing to do.

    Raises
    ------
    MetagradError
        if they cannot be reached.
    """
    if not started():
        yield ALONE
        return
    rank, world = _number("RANK"), _number("WORLD_SIZE")
    if rank >= world:
        raise MetagradError(f"RANK is {rank}, and WORLD_SIZE {world}: ranks are counted from 0")
    _number("MASTER_PORT")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store = _unused_keys(rank, world)
            dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_PATIENCE)
        else:  # rank 0 opens a store of its own
            dist.init_process_group(backend, timeout=_PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).splitlines()[0][:120]
        raise MetagradError(
            f"the ranks cannot meet at {where} ({reason}): choose another port (torchrun --master-port) or use "
            "torchrun --standalone"
        ) from error
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _unused_keys(rank: int, world: int) -> dist.Store:
    """Return a part of ``torchrun``'s store that no earlier attempt has written to, the same one on every rank.

    ``torchrun`` keeps one store through all restarts, and ``init_process_group`` gives its keys the same names each
    time (https://github.com/pytorch/pytorch/issues/135712): the first rank after a restart would read the addresses of
    dead processes. The restart count does not help, because each node has its own. So rank 0 writes a random name, and
    every other rank trusts it once rank 0 has answered a random name of that rank's own.
    """
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=_PATIENCE)
    mine = uuid.uuid4().hex
    if rank == 0:
        store.set("metagrad/attempt", mine)
        for other in range(1, world):
            theirs = store.get(f"metagrad/{mine}/{other}").decode()  # waits
            store.set(f"metagrad/{theirs}", mine)
        return dist.PrefixStore(f"metagrad/{mine}", store)
    until = time.monotonic() + _PATIENCE.total_seconds()
    while not store.check([f"metagrad/{mine}"]):
        if time.monotonic() > until:
            raise TimeoutError("rank 0 does not answer")
        attempt = store.get("metagrad/attempt").decode()  # if it is an earlier attempt's, rank 0 does not answer
        store.set(f"metagrad/{attempt}/{rank}", mine)
        time.sleep(0.02)
    return dist.PrefixStore(f"metagrad/{store.get(f'metagrad/{mine}').decode()}", store)


@contextmanager
def _lost_ranks() -> Iterator[None]:
    """Let torch's error say that another rank is gone."""
    try:
        yield
    except RuntimeError as error:
        # torch's message: "[file:line] What happened. Guesses."
        reason = re.sub(r"^\[[^\]]*\] *", "", str(error).splitlines()[0]).split(". ")[0][:120]
        raise MetagradError(
            f"another rank is gone ({reason}): see its own message; continue with metagrad train --resume"
        ) from error
