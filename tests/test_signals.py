"""Ctrl-C and SIGTERM at any moment: one line, exit code 130, nothing half imported."""

import contextlib
import importlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest
from toyruns import new_run, toy, train

from metagrad.cli.interrupt import Interrupt
from metagrad.cli.main import main
from metagrad.cli.signals import NUMBERS, Signals, interruptible

KILLS_ITSELF = """
import os, signal
os.kill(os.getpid(), signal.{name})
for _ in range(1000):
    pass
whole = True
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_inside_an_import_waits_until_the_module_is_whole(tmp_path, monkeypatch, capsys, name):
    (tmp_path / f"kills_itself_{name}.py").write_text(KILLS_ITSELF.format(name=name))
    monkeypatch.syspath_prepend(tmp_path)
    before = [signal.getsignal(number) for number in NUMBERS]

    def run():
        importlib.import_module(f"kills_itself_{name}")
        time.sleep(20)  # a signal ends it
        return 0

    began = time.monotonic()
    assert interruptible(run) == 130
    assert time.monotonic() - began < 10
    assert sys.modules[f"kills_itself_{name}"].whole
    assert capsys.readouterr().err == "metagrad: interrupted\n"
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_an_interrupt_in_a_destructor_is_not_lost(capsys):
    class Ends:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)
            sum(range(1000))

    def run():
        made = Ends()
        del made
        time.sleep(20)
        return 0

    assert interruptible(run) == 130
    assert capsys.readouterr().err == "metagrad: interrupted\n"


def test_what_a_lock_complains_of_after_an_interrupt_is_the_interrupt(capsys):
    def run():
        try:
            signal.raise_signal(signal.SIGINT)
            time.sleep(1)
        finally:
            raise RuntimeError("release unlocked lock")

    assert interruptible(run) == 130
    assert capsys.readouterr().err == "metagrad: interrupted\n"
    with pytest.raises(RuntimeError, match="unlocked"):
        interruptible(lambda: exec("raise RuntimeError('unlocked')"))


def test_once_asks_and_twice_stops(capsys):
    def run():
        with Interrupt() as asked:
            assert not asked()
            signal.raise_signal(signal.SIGINT)
            assert asked()
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("it went on")

    assert interruptible(run) == 130
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "metagrad: will save and stop after this meta-step; interrupt again to stop at once",
        "metagrad: interrupted",
    ]


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Signals() as signals, Interrupt() as asked:
            signals.release()
            signal.raise_signal(signal.SIGINT)
            assert not asked()
    finally:
        signal.signal(signal.SIGINT, before)


def state():
    return (
        [signal.getsignal(number) for number in NUMBERS],
        warnings.showwarning,
        list(warnings.filters),
        [stream.errors for stream in (sys.stdin, sys.stdout, sys.stderr)],
        sys.unraisablehook,
        os.environ.get("COLUMNS"),
    )


@pytest.mark.parametrize("words", ["--version", "--help", "evaluate nowhere", "train glyphs --waays 3", "data list"])
def test_main_leaves_nothing_changed(words):
    before = state()
    with contextlib.suppress(SystemExit):
        main(words.split())
    assert state() == before


def in_a_thread(work):
    found = []

    def run():
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def test_training_in_a_thread(tmp_path, monkeypatch):
    """As in a notebook's or a server's: no handlers are allowed there, and none are needed."""
    from metagrad import data

    with new_run(tmp_path / "run", meta_steps=2) as run:
        assert in_a_thread(lambda: train(run, toy())).result is not None
    monkeypatch.setattr(data, "load", lambda name, **_: toy())
    words = ["train", "omniglot", "--ways", "3", "--queries", "2", "--tasks", "2", "--filters", "2", "--meta-steps",
             "2", "--val-tasks", "4", "--test-tasks", "4", "--run", str(tmp_path / "own")]  # fmt: skip
    assert in_a_thread(lambda: main(words)) == 0


def interrupted_at(moment, words, which):
    """Start the command, send it signals from ``moment`` on; return its exit code and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "metagrad", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(moment)
    for number in which:
        process.send_signal(number)
        time.sleep(0.05)
    _, said = process.communicate(timeout=120)
    return process.returncode, said


def before_our_first_line(code, said):
    """Whether Python itself was ended, which nothing in a package can help."""
    return code in (-signal.SIGINT, -signal.SIGTERM) or (code == 1 and "_run\n" not in said)


def require_one_line_each(tmp_path, pictures, times, seed):
    r = random.Random(seed)
    for number in range(times):
        words = r.choice(
            [
                ["adapt", "glyphs", str(pictures / "known"), "--out", str(tmp_path / f"{number}.model")],
                ["train", "glyphs", "--meta-steps", "3", "--filters", "2", "--tasks", "2", "--val-tasks", "4",
                 "--test-tasks", "4", "--run", str(tmp_path / f"run{number}")],
                ["evaluate", str(tmp_path / "nowhere")],
            ]
        )  # fmt: skip
        which = [r.choice(NUMBERS) for _ in range(r.choice([1, 1, 2]))]
        moment = r.uniform(0, 3)
        code, said = interrupted_at(moment, words, which)
        if before_our_first_line(code, said):
            assert moment < 0.5, (moment, said)
            continue
        own = [line for line in said.splitlines() if "will save and stop" not in line]
        assert code in (0, 2, 130), (words, which, moment, code, said)
        assert len(own) <= 1, (words, which, moment, code, said)


def test_signals_at_random_moments(tmp_path, pictures):
    require_one_line_each(tmp_path, pictures, 2, time.time_ns())


@pytest.mark.slow
def test_signals_at_many_random_moments(tmp_path, pictures):
    require_one_line_each(tmp_path, pictures, 200, 0)
