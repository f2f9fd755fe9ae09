"""Features of pictures, computed once for each picture and network, and kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metagrad import strict_json
from metagrad.data.cache import Damaged, cache_root, read_facts, storage_error, write_facts
from metagrad.data.feature_folders import FACTS, MOST_BYTES, make_room, remove, said_size
from metagrad.data.feature_records import KEY, RECORD, Records
from metagrad.data.load_ahead import Load, load_ahead
from metagrad.data.rows import Progress
from metagrad.errors import MetagradError, MetagradWarning, NotFiniteError
from metagrad.torch_modes import default_modes, unrecorded

Compute = Callable[[Tensor], Tensor]

_FORM = 1  # raise it whenever the files change: those of another form have another name, and are left alone
_BATCH = 32  # pictures


@dataclass(frozen=True)
class Found:
    """Where features are: picture ``n`` has the row ``rows[index[n]]``.

    Attributes
    ----------
    rows:
        ``(M, *shape)``: usually mapped into memory, so that only what is looked at is read.
    index:
        int64, ``(N,)``; -1 for a picture that could not be read.
    """

    rows: Tensor
    index: Tensor

    def gather(self, which: slice | Tensor = slice(None)) -> Tensor:
        """Return the features of the pictures in their order, ``(N, *shape)``.

        Rows that lie in this order already stay mapped; others are copied into memory.

        Parameters
        ----------
        which:
            the pictures, by their numbers. Default: all.

        Raises
        ------
        ValueError
            if one of them could not be read.
        """
        index = self.index[which]
        if not len(index):
            return self.rows[:0]
        if bool((index < 0).any()):
            raise ValueError("a picture could not be read: leave out those whose index is -1")
        first = int(index[0])
        with unrecorded():
            if torch.equal(index, torch.arange(first, first + len(index), device="cpu")):
                return self.rows[first : first + len(index)]
            return self.rows[index]


class FeatureStore:
    """The features that one network gives, by the content of the picture; :meth:`open` finds or begins it.

    Several processes may use one store. What an interrupted or killed process computed is kept. An altered row is
    computed anew, with a warning. Where nothing can be written (full disk, no permission), features are computed all
    the same and held in memory, with a warning. As all outputs of a network, a row may differ in its last digits from
    what another batch or machine would give.

    Attributes
    ----------
    identity:
        sha256 (hex) of all that decides the features but the picture.
    folder:
        where the rows are.
    shape:
        of one picture's features.

    Example
    -------
    >>> import tempfile, torch
    >>> from metagrad.data.features import array_keys
    >>> images = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    >>> store = FeatureStore.open("digest of the network", shape=(3,), directory=tempfile.mkdtemp())
    >>> rows = store.features(array_keys(images), lambda some: images[some], lambda batch: batch.float().mean((2, 3)))
    >>> rows.shape, torch.equal(rows, images.float().mean((2, 3)))
    (torch.Size([5, 3]), True)
    """

    def __init__(self, folder: Path, identity: str, shape: tuple[int, ...], dtype: np.dtype, most_bytes: int) -> None:
        self.folder, self.identity, self.shape = folder, identity, shape
        self._dtype, self._most_bytes = dtype, most_bytes
        self._records = Records(folder, shape, dtype, identity.encode())
        self._held: dict[bytes, np.ndarray] = {}  # rows that could not be written
        self._warned = False
        self._turn = threading.RLock()

    @classmethod
    def open(
        cls,
        digest: str,
        *,
        shape: Sequence[int],
        directory: Path | str | None = None,
        name: str = "",
        preprocessing: str = "",
        dtype: torch.dtype = torch.float32,
        most_bytes: int = MOST_BYTES,
    ) -> FeatureStore:
        """Return the store of a network; it is made where there is none.

        Parameters
        ----------
        digest:
            of the network and its weights. Another digest, shape, type or preprocessing is another store.
        shape:
            of one picture's features.
        directory:
            the folder of all stores. Default: ``features`` in metagrad's cache (METAGRAD_CACHE).
        name:
            what people call the network.
        preprocessing:
            how a picture becomes what the network is given.
        dtype:
            float32, or uint8 for small pictures.
        most_bytes:
            all stores in the folder may take so much; those that nobody used for longest are removed first.

        Raises
        ------
        ValueError
            for an empty shape, or another type.
        """
        shape = tuple(shape)
        if not all(isinstance(side, int) and side > 0 for side in shape):
            raise ValueError(f"shape must be whole numbers above 0, got {shape}")
        if dtype not in (torch.float32, torch.uint8):
            raise ValueError(f"dtype must be float32 or uint8, got {dtype}")
        kind = str(dtype).removeprefix("torch.")
        facts = {"form": _FORM, "digest": digest, "shape": list(shape), "dtype": kind, "preprocessing": preprocessing}
        identity = hashlib.sha256(strict_json.dump(facts).encode()).hexdigest()
        folder = cache_root() / "features" if directory is None else Path(directory)
        store = cls(folder / f"v{_FORM}-{identity[:32]}", identity, shape, np.dtype(kind), most_bytes)
        store._note({"name": name, **facts})
        return store

    def _note(self, facts: dict[str, Any]) -> None:
        """Write beside the rows what they are, and that they are used now."""
        path = self.folder / FACTS
        with contextlib.suppress(OSError, MetagradError):  # for the list of stores alone
            try:
                known = read_facts(path)
            except Damaged:
                known = None
            if known is None and self._records.refused is None:
                write_facts(path, facts)
            os.utime(path)

    def __contains__(self, key: bytes) -> bool:
        return key in self._held or key in self._records.at

    def features(
        self,
        keys: Sequence[bytes],
        load: Load,
        compute: Compute,
        *,
        batch: int = _BATCH,
        progress: Progress | None = None,
    ) -> Tensor:
        """Return the features of pictures as one tensor, ``(N, *shape)``, in the order of ``keys``; see :meth:`find`.

        Raises
        ------
        ValueError
            as :meth:`find`, and if a picture cannot be read.
        """
        return self.find(keys, load, compute, batch=batch, progress=progress).gather()

    def find(
        self,
        keys: Sequence[bytes],
        load: Load,
        compute: Compute,
        *,
        batch: int = _BATCH,
        progress: Progress | None = None,
    ) -> Found:
        """Find features, after those that are missing are computed, each once.

        Only a few batches of pictures are in memory at a time. A thread loads pictures while the network computes.

        Parameters
        ----------
        keys:
            the sha256 of each picture (:func:`~metagrad.data.features.picture_keys`,
            :func:`~metagrad.data.features.array_keys`).
        load:
            called in another thread with numbers of pictures, places in ``keys``. Returns the batch as a tensor or
            array ``(B, ...)``, or a list of B pictures, ``None`` in place of one that cannot be read.
        compute:
            called with such a batch as a tensor; returns ``(B, *shape)`` on any device.
        batch:
            pictures at a time.
        progress:
            called with (done, total, what).

        Raises
        ------
        ValueError
            for keys of another length, or if ``load`` or ``compute`` returns another shape.
        NotFiniteError
            if the network gives NaN or infinite features.
        """
        with self._turn, unrecorded():
            wrong = next((key for key in keys if len(key) != KEY), None)
            if wrong is not None:
                raise ValueError(f"keys must be {KEY} bytes each, one has {len(wrong)}")
            self._records.refresh()
            self._forget_altered(keys, progress)
            missing = {key: number for number, key in reversed(list(enumerate(keys))) if key not in self}
            if missing:
                if self._records.refused is None:
                    self._make_room(set(keys), len(missing))
                self._fill(sorted(missing.values()), keys, load, compute, batch, progress)
            return self._found(keys)

    def _forget_altered(self, keys: Sequence[bytes], progress: Progress | None) -> None:
        told = None if progress is None else lambda done, total: progress(done, total, "checking cached features")
        altered = self._records.forget_altered(keys, told)
        if altered:
            warnings.warn(
                f"the cached features of {altered} picture{'s' * (altered > 1)} in {self.folder} are damaged: "
                "computing them again",
                MetagradWarning,
                stacklevel=4,
            )

    def _fill(
        self,
        missing: list[int],
        keys: Sequence[bytes],
        load: Load,
        compute: Compute,
        batch: int,
        progress: Progress | None,
    ) -> None:
        done, parts = 0, [missing[first : first + batch] for first in range(0, len(missing), batch)]
        for numbers, read, pictures in load_ahead(parts, load):
            if pictures is not None:
                self._keep([keys[number] for number in read], self._computed(compute, pictures))
            done += len(numbers)
            if progress is not None:
                progress(done, len(missing), "computing features")

    def _computed(self, compute: Compute, pictures: Tensor) -> np.ndarray:
        with default_modes(), torch.no_grad():
            found = compute(pictures)
        shape = (len(pictures), *self.shape)
        if not isinstance(found, Tensor) or tuple(found.shape) != shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"compute must return features {shape} of {len(pictures)} pictures, got {got}")
        kind = torch.uint8 if self._dtype == np.uint8 else torch.float32
        rows: np.ndarray = found.detach().to("cpu", kind).contiguous().numpy()
        if not np.isfinite(rows).all():
            raise NotFiniteError("the network gives NaN or infinite features: check its weights")
        return rows

    def _keep(self, keys: list[bytes], rows: np.ndarray) -> None:
        try:
            self._records.append(keys, rows)
            return
        except (OSError, MetagradError) as error:
            self._records.refused = error
            said = error if isinstance(error, MetagradError) else storage_error(self.folder / "rows", error)
        if not self._warned:
            self._warned = True
            warnings.warn(f"features are computed but cannot be cached: {said}", MetagradWarning, stacklevel=5)
        self._held.update(zip(keys, rows, strict=True))

    def _found(self, keys: Sequence[bytes]) -> Found:
        at, rows = self._records.at, self._records.mapped()
        index = torch.tensor([at.get(key, -1) for key in keys], dtype=torch.int64, device="cpu")
        if any(key in self._held for key in keys):
            here = {key: number for number, key in enumerate(dict.fromkeys(key for key in keys if key in self))}
            whole = rows.new_empty((len(here), *self.shape))
            for key, number in here.items():
                whole[number] = torch.from_numpy(self._held[key]) if key in self._held else rows[at[key]]
            places = torch.tensor([here.get(key, -1) for key in keys], dtype=torch.int64, device="cpu")
            return Found(whole, places)
        return Found(rows, index)

    def _make_room(self, wanted: set[bytes], missing: int) -> None:
        """Remove stores, the one that nobody used for longest first, and at last rows that nobody wants now."""
        size = RECORD + self._records.row_bytes
        if make_room(self.folder, missing * size, self._most_bytes):
            return
        old, kept = self._records, [key for key in self._records.at if key in wanted]
        if len(kept) < len(old.at):
            rows, positions = old.mapped(), [old.at[key] for key in kept]
            if remove(self.folder):
                self._records = Records(self.folder, self.shape, self._dtype, self.identity.encode())
                for first in range(0, len(kept), _BATCH):
                    some = slice(first, first + _BATCH)
                    self._keep(kept[some], rows[positions[some]].numpy())
                _say(f"the cached features of other pictures, of the same network, to keep the cache below "
                     f"{said_size(self._most_bytes)}")  # fmt: skip
        need = (len(kept) + missing) * size
        if need > self._most_bytes:
            warnings.warn(
                f"these features take {said_size(need)} on disk, more than the cache's limit of "
                f"{said_size(self._most_bytes)}: they are removed when other features need space",
                MetagradWarning,
                stacklevel=4,
            )


def _say(what: str) -> None:
    warnings.warn(f"removed {what}", MetagradWarning, stacklevel=5)
