"""Decoding within bounds: many large pictures at once take no more memory than one."""

import io
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metagrad.data import decoding
from metagrad.data.decoding import Room


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 150), max_size=30))
def test_no_more_is_held_at_once_than_there_is_room_for(wanted):
    room, lock, held, seen = Room(100), threading.Lock(), [0], []

    def take(pixels):
        with room.hold(pixels):
            with lock:
                held[0] += min(pixels, 100)
                seen.append(held[0])
            with lock:
                held[0] -= min(pixels, 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, wanted))
    assert len(seen) == len(wanted)
    assert max(seen, default=0) <= 100
    with room.hold(100):  # all was given back
        pass


def test_room_is_given_back_after_a_failure():
    room = Room(10)
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"), room.hold(10):
            raise ValueError("broken")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_wait_for_threads_it_has_not():
    content = saved(Image.new("RGB", (400, 400)))
    with decoding._ROOM.hold(decoding.MOST_PIXELS):
        child = multiprocessing.get_context("fork").Process(target=decoding.decode, args=(content, 8))
        child.start()
        child.join(60)
    assert child.exitcode == 0


def saved(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_a_picture_takes_room_for_what_is_decoded_of_it(monkeypatch):
    taken = []
    take = decoding._ROOM.hold
    monkeypatch.setattr(decoding._ROOM, "hold", lambda pixels: (taken.append(pixels), take(pixels))[1])
    image = Image.new("RGB", (800, 600))
    for content in (saved(image), saved(image, "JPEG"), saved(image, "JPEG", progressive=True)):
        decoding.decode(content, 20)
    assert taken == [480_000, 480_000 // 64, 480_000]  # of a JPEG an eighth each way, but for a progressive one


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_parts_are_as_if_composed_at_once(mode, monkeypatch):
    g = np.random.default_rng(0)
    image = Image.fromarray(g.integers(0, 256, (70, 50, 4), dtype=np.uint8), "RGBA").convert(mode)
    options = {"transparency": 3} if mode == "P" else {"transparency": image.getpixel((0, 0))} if mode == "RGB" else {}
    monkeypatch.setattr(decoding, "_LINES", 7 * 50)
    with Image.open(io.BytesIO(saved(image, **options))) as read:
        clear = read.convert("RGBA")
        expected = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
        assert np.array_equal(np.asarray(decoding.as_rgb(read, "white")), np.asarray(expected))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_four_large_pictures_take_the_memory_of_one(tmp_path):
    (tmp_path / "x.png").write_bytes(saved(Image.new("RGBA", (5000, 5000), (1, 2, 3, 128)), compress_level=1))
    code = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from metagrad.data import decoding
decoding._ROOM = decoding.Room(25_000_000)
content = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda _: decoding.decode(content, 84), range(4)))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.png")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 300  # one alone: 200; four at once, with five copies of each: 1,600
