"""The store of features, interrupted, killed, and used by several processes at once."""

import multiprocessing
import os
import signal
import time
import warnings

import numpy as np
import pytest
import torch
from feature_rows import IMAGES, KEYS, TRUTH, Counted, file_of, network, opened


def test_what_was_computed_before_ctrl_c_is_kept(tmp_path):
    one = Counted()

    def compute(batch):
        if len(one.batches) == 3:
            raise KeyboardInterrupt
        return one.compute(batch)

    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path).features(one.keys, one.load, compute, batch=8)
    again = Counted()
    assert torch.equal(again.features(opened(tmp_path)), TRUTH)
    assert again.loaded == list(range(24, 40))


def _slow(folder, started):
    def compute(batch):
        started.set()
        time.sleep(0.003)
        return network(batch)

    opened(folder).features(KEYS, lambda some: IMAGES[some], compute, batch=1)


def test_killed_processes_leave_what_they_computed(tmp_path):
    fork = multiprocessing.get_context("fork")
    done = []
    for _ in range(4):
        started = fork.Event()
        process = fork.Process(target=_slow, args=(tmp_path, started))
        process.start()
        started.wait(60)
        time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        store = opened(tmp_path)
        done.append(sum(key in store for key in KEYS))
    assert done == sorted(done)
    assert done[0] > 0
    one = Counted()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(one.features(opened(tmp_path)), TRUTH)
    assert len(one.loaded) == 40 - done[-1]


def _some(folder, seed, results):
    order = np.random.default_rng(seed).permutation(40)[:30].tolist()
    one = Counted(order)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results.put(torch.equal(one.features(opened(folder), batch=2), one.truth))


def test_processes_at_once_never_spoil_each_others_rows(tmp_path):
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    processes = [fork.Process(target=_some, args=(tmp_path, seed, results)) for seed in range(6)]
    for process in processes:
        process.start()
    assert [results.get(timeout=120) for _ in processes] == [True] * 6
    for process in processes:
        process.join()
    one = Counted()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(one.features(opened(tmp_path)), TRUTH)
    assert file_of(tmp_path, "rows").stat().st_size == 40 * 28  # none is there twice


def test_two_stores_learn_of_each_others_rows(tmp_path):
    first, second = opened(tmp_path), opened(tmp_path)
    Counted(range(20)).features(first)
    one = Counted()
    assert torch.equal(one.features(second), TRUTH)
    assert one.loaded == list(range(20, 40))
    other = Counted()
    assert torch.equal(other.features(first), TRUTH)
    assert not other.loaded
