"""Several processes: the same numbers as one, and no silent disagreement or loss."""

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from forked import command
from safetensors.torch import load_file
from torch.distributed import TCPStore

from metagrad.cli.main import main
from metagrad.distributed import Ranks, joined, local_device, restarted
from metagrad.errors import MetagradError

SMALL = ["--tasks", "5", "--filters", "4", "--val-tasks", "12", "--val-every", "4", "--test-tasks", "40",
         "--schedule", "constant", "--inner-steps", "2", "--no-calibrate"]  # fmt: skip


def trained(*words):
    """Train in this process, which is alone."""
    assert main(["train", *words]) == 0


def torchrun(ranks, *words, options=("--standalone",), **popen):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), *options]
    return subprocess.Popen(
        [*command, "-m", "metagrad", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **popen,
    )  # fmt: skip


def finished(process):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output


def rank_of(folder, rank, world, port, words):
    """Start one rank in a forked process."""
    return command(
        words, folder / f"rank {rank}", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip


def ranks_of(folder, world, *words, last=()):
    """Start the ranks of one run; ``last``: further words for the last of them."""
    port = free_port()
    return [rank_of(folder, rank, world, port, [*words, *(last if rank == world - 1 else ())]) for rank in range(world)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def weights(run):
    return {k: v for k, v in load_file(run / "last.safetensors").items() if k.startswith("theta/")}


def difference(a, b):
    return max(float((a[name] - b[name]).norm() / b[name].norm().clamp_min(1e-3)) for name in b)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    run = tmp_path_factory.mktemp("alone") / "run"
    trained("glyphs", *SMALL, "--meta-steps", "8", "--run", str(run))
    return run


@pytest.mark.parametrize("tasks", [1, 5, 16, 600])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares_cover_all_tasks_once_and_evenly(tasks, world):
    shares = [Ranks(rank, world).mine(tasks) for rank in range(world)]
    assert [i for first, last in shares for i in range(first, last)] == list(range(tasks))
    assert max(b - a for a, b in shares) - min(b - a for a, b in shares) <= 1


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_ranks_gives_the_numbers_of_one(ranks, alone, tmp_path):
    words = ["train", "glyphs", *SMALL, "--meta-steps", "8", "--run-dir", str(tmp_path / "run")]
    for rank in ranks_of(tmp_path, ranks, *words):
        assert rank.ended()[0] == 0
    assert (
        difference(weights(tmp_path / "run"), weights(alone)) < 2e-5
    )  # Adam magnifies rounding where gradients vanish
    ours, theirs = ([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
                    for run in (tmp_path / "run", alone))  # fmt: skip
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert {k: v for k, v in a.items() if "seconds" not in k} == pytest.approx(
            {k: v for k, v in b.items() if "seconds" not in k}, rel=1e-4
        )
    results = [json.loads((run / "result.json").read_text()) for run in (tmp_path / "run", alone)]
    assert results[0]["value"] == pytest.approx(results[1]["value"], abs=2e-3)
    assert results[0]["protocol"] == results[1]["protocol"]


def test_one_rank_continues_what_two_began(alone, tmp_path):
    run = str(tmp_path / "run")
    for rank in ranks_of(tmp_path, 2, "train", "glyphs", *SMALL, "--meta-steps", "4", "--run-dir", run):
        assert rank.ended()[0] == 0
    trained("--resume", run, "--meta-steps", "8", "--no-calibrate")
    assert difference(weights(tmp_path / "run"), weights(alone)) < 2e-5


def refused(ranks):
    """Return the one line that each of these ranks ends with."""
    for code, said in [rank.ended() for rank in ranks]:
        assert code == 2
        assert "Traceback" not in said
        (line,) = [line for line in said.splitlines() if re.match(r"metagrad( \(rank \d\))?: ", line)]
        yield line


def test_more_ranks_than_tasks_are_refused(tmp_path):
    words = ["train", "glyphs", "--tasks", "1", "--meta-steps", "2", "--run-dir", str(tmp_path / "run")]
    for line in refused(ranks_of(tmp_path, 2, *words)):
        assert "2 ranks cannot share --tasks 1: start fewer, or raise --tasks" in line


def test_ranks_started_differently_say_so(tmp_path):
    words = ["train", "glyphs", *SMALL, "--meta-steps", "2", "--run", str(tmp_path / "run"), "--seed", "10"]
    for line in refused(ranks_of(tmp_path, 2, *words, last=["--seed", "11"])):
        assert "rank 1 has seed 11, rank 0 has 10: start all ranks alike" in line


def test_an_error_of_the_first_rank_stops_the_others(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "something").touch()
    for line in refused(ranks_of(tmp_path, 2, "train", "glyphs", *SMALL, "--run", str(run))):
        assert "exists already" in line


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ["train", "glyphs", *SMALL, "--run", str(tmp_path / "run")]
        (line,) = refused([rank_of(tmp_path, 0, 2, port, words)])
    assert f"the ranks cannot meet at 127.0.0.1:{port}" in line


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE is 'x'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": ""}, "RANK is ''"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2, and WORLD_SIZE 2"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "x"}, "MASTER_PORT is 'x'"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '999"),
    ],
)
def test_what_the_environment_says_is_checked(variables, named, monkeypatch, capsys, tmp_path):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["evaluate", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert named in said
    assert len(said.splitlines()) == 1
    assert len(said) < 400


def test_other_variables_are_checked_where_they_count(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "x")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "-1")
    assert local_device("cpu") == "cpu"
    with pytest.raises(MetagradError, match="LOCAL_RANK is 'x'"):
        local_device("cuda")
    with pytest.raises(MetagradError, match="TORCHELASTIC_RESTART_COUNT is '-1'"):
        restarted()


def begun(run, lines=2, seconds=120):
    """Wait until a run has logged something and saved a checkpoint."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        logged = run / "metrics.jsonl"
        if logged.exists() and len(logged.read_text().splitlines()) >= lines and (run / "last.safetensors").exists():
            return
        time.sleep(0.2)
    raise AssertionError("the run did not begin")


def test_a_rank_that_dies_stops_the_other_and_loses_nothing(tmp_path):
    run = tmp_path / "run"
    words = ["train", "glyphs", *SMALL, "--meta-steps", "5000", "--checkpoint-seconds", "0.2", "--run", str(run)]
    first, other = ranks_of(tmp_path, 2, *words)
    begun(run)
    other.process.kill()
    assert other.ended()[0] == -signal.SIGKILL
    (line,) = refused([first])
    assert "another rank is gone" in line
    assert "metagrad train --resume" in line
    saved = load_file(run / "last.safetensors")
    assert all(torch.isfinite(leaf).all() for name, leaf in saved.items() if name.startswith("theta/"))
    assert main(["evaluate", str(run), "--tasks", "20"]) == 0


def _meetings(rank, port):
    """Join and leave five times, once late in each rank's turn; return how many ranks met each time."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                      TORCHELASTIC_USE_AGENT_STORE="True")  # fmt: skip
    met = []
    for late in (None, 0, 1, 0, 1):
        time.sleep(float(rank == late))
        with joined() as ranks:
            met.append(ranks.sum(torch.ones(())).item())
    return met


def test_ranks_meet_again_in_a_store_that_has_been_used():
    """A restart keeps torchrun's store: whoever comes first must not read the addresses of dead processes there."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        both = [pool.submit(_meetings, rank, store.port) for rank in range(2)]
        assert [one.result(60) for one in both] == [[2.0] * 5] * 2


@pytest.mark.slow
def test_torchruns_restart_continues_the_run(tmp_path):
    words = ["train", "glyphs", *SMALL, "--meta-steps", "80", "--val-every", "40", "--checkpoint-seconds", "0.2"]
    process = torchrun(2, *words, options=["--standalone", "--max-restarts", "3"], cwd=tmp_path)
    until = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/config.json")):
        assert time.monotonic() < until
        time.sleep(0.1)
    (run,) = [path.parent for path in tmp_path.glob("runs/*/config.json")]
    begun(run, lines=2)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(children.split()[-1]), signal.SIGKILL)
    finished(process)
    assert json.loads((run / "result.json").read_text())["meta_steps"] == 80
    steps = [
        line["step"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line
    ]
    assert steps == list(range(10, 81, 10))
    assert len(list(tmp_path.glob("runs/*"))) == 1


@pytest.mark.slow
def test_a_rank_lost_on_one_of_two_nodes_restarts_both(tmp_path):
    """Two agents of torchrun on this machine stand for two machines."""
    words = ["train", "glyphs", *SMALL, "--meta-steps", "80", "--val-every", "40", "--checkpoint-seconds", "0.2",
             "--run-dir", str(tmp_path / "run")]  # fmt: skip
    meet = ["--nnodes", "2", "--max-restarts", "3", "--rdzv-id", "pair", "--rdzv-backend", "c10d",
            "--rdzv-endpoint", f"localhost:{free_port()}", "--local-addr", "localhost"]  # fmt: skip
    nodes = [torchrun(2, *words, options=meet, cwd=tmp_path) for _ in range(2)]
    begun(tmp_path / "run", lines=2)
    children = subprocess.run(["pgrep", "-P", str(nodes[1].pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(children.split()[0]), signal.SIGKILL)
    for node in nodes:
        finished(node)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["meta_steps"] == 80
    lines = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(10, 81, 10))
