"""Several processes or threads that use the cache at once: an entry is made once, and nobody waits for the dead."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from small_pictures import SIZE, folder_of_pictures

from metagrad import MetagradError, MetagradWarning, files
from metagrad.data import cache, folder, memmap, pictures


def use_pictures(place, note):
    decode = pictures.decode_member
    pictures.decode_member = lambda members, name, size: (note(), decode(members, name, size))[1]
    try:
        return folder.load(place / "set", size=SIZE, cache_dir=place / "cache").digest
    finally:
        pictures.decode_member = decode


def use_rows(place, note):
    def build():
        for _ in range(21):
            note()
        time.sleep(0.1)
        return np.random.default_rng(0).integers(0, 256, (5, 3, 20, 20), dtype=np.uint8)

    found = memmap.cached_rows(place / "cache" / "key.npy", (5, 3, 20, 20), build, what="x")
    return str(found.sum())


def run(use, place, gate, queue):
    def note():
        with (place / "work.txt").open("ab", buffering=0) as file:
            file.write(b".")

    gate.wait()
    try:
        queue.put(use(place, note))
    except BaseException as error:
        queue.put(repr(error))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.parametrize("use", [use_pictures, use_rows])
@pytest.mark.parametrize("many", [2, 6])
def test_several_processes_that_come_first_at_once_make_it_once(tmp_path, use, many):
    folder_of_pictures(tmp_path / "set")
    context = multiprocessing.get_context("fork")
    gate, queue = context.Event(), context.Queue()
    processes = [context.Process(target=run, args=(use, tmp_path, gate, queue)) for _ in range(many)]
    for process in processes:
        process.start()
    gate.set()
    found = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len(set(found)) == 1
    assert "Error" not in found[0]
    assert (tmp_path / "work.txt").read_bytes() == b"." * 21
    assert not [name for name in os.listdir(tmp_path / "cache") if name.startswith(".")]


@pytest.mark.parametrize("use", [use_pictures, use_rows])
def test_several_threads_that_come_first_at_once_make_it_once(tmp_path, use):
    folder_of_pictures(tmp_path / "set")
    worked = []
    if use is use_rows:
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda _: use(tmp_path, lambda: worked.append(1)), range(6)))
        assert len(worked) == 21
    else:
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(
                lambda _: folder.load(tmp_path / "set", size=SIZE, cache_dir=tmp_path / "cache").digest, range(6)
            ))  # fmt: skip
    assert len(set(found)) == 1


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_who_was_killed_while_it_made_an_entry_is_not_waited_for(tmp_path):
    folder_of_pictures(tmp_path / "set")
    begun = multiprocessing.get_context("fork").Event()

    def stuck():
        use_pictures(tmp_path, lambda: (begun.set(), time.sleep(60)))

    process = multiprocessing.get_context("fork").Process(target=stuck)
    process.start()
    assert begun.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    place = tmp_path / "cache" / "pictures"
    (left,) = place.glob(".metagrad-*.tmp")
    os.utime(left, (0, 0))  # seconds later
    assert folder.load(tmp_path / "set", size=SIZE, cache_dir=tmp_path / "cache").digest
    assert not left.exists()


def test_only_what_nobody_writes_any_more_is_removed(tmp_path):
    old = [f".metagrad-{'0' * 16}.tmp", ".metagrad-x.tmp", ".mine", "mine.tmp"]
    for name in (*old, f".metagrad-{'1' * 16}.tmp"):
        (tmp_path / name).write_text("")
    for name in old:
        os.utime(tmp_path / name, (0, 0))

    def write(part):
        part.write_text("half")
        os.utime(part, (0, 0))  # for a long time already
        with cache.locked(tmp_path / "entry", "it"):
            pass
        assert part.exists()

    files.write_atomically(tmp_path / "slow", write, refused=lambda error: MetagradError(str(error)))
    (tmp_path / "slow").unlink()
    assert {path.name for path in tmp_path.iterdir()} == {"entry.lock", *old[1:], f".metagrad-{'1' * 16}.tmp"}


def test_who_waits_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_PATIENCE", 0.1)
    held, release = threading.Event(), threading.Event()

    def hold():
        with cache.locked(tmp_path / "entry", "it"):
            held.set()
            release.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    threading.Timer(0.5, release.set).start()
    with (
        pytest.warns(MetagradWarning, match="another process is preparing it: waiting"),
        cache.locked(tmp_path / "entry", "it"),
    ):
        assert release.is_set()
    thread.join()


def test_a_file_system_without_locks_is_used_all_the_same(tmp_path, monkeypatch):
    def refuse(self, **options):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(cache.filelock.FileLock, "acquire", refuse)
    assert use_rows(tmp_path, lambda: None) == use_rows(tmp_path, lambda: None)
