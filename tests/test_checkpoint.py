"""A run's files are what this run wrote, and fit what is about to use them; else that is said and nothing changes."""

from __future__ import annotations

import json
import os
import shutil
import threading
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toyruns import measured, new_run, rewritten, tensors, toy, train

from metagrad import tensorfile
from metagrad.errors import MetagradError, MetagradWarning
from metagrad.experiment import loop
from metagrad.experiment.checkpoint import State
from metagrad.experiment.run import Run
from metagrad.experiment.setup import learned

OLD = Path(__file__).parent / "runs" / "0.1"  # stopped at meta-step 26, by the version of that number


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    with new_run(folder, meta_steps=20) as run:
        train(run, toy())
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def go_on(folder):
    """Resume with more meta-steps, as the command does."""
    with Run.open(folder) as run:
        learned(run, "last", inputs=(1, 8, 8))
        return train(run, toy(), resume=True)


def changed(path, change, *, digest=True):
    """Write a checkpoint anew with other tensors or facts, and the digest that is right for them, or none."""
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["facts"])
    leaves = load_file(path)
    change(leaves, facts)
    text = json.dumps(facts)
    metadata = {"facts": text} | ({"digest": tensorfile.digest_of(text, leaves)} if digest else {})
    save_file(leaves, path, metadata)


@pytest.mark.parametrize("name", ["best", "last"])
def test_one_bit_anywhere_in_a_checkpoint_is_noticed(run, name):
    path = run / f"{name}.safetensors"
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(0, 8 * len(whole), (60,), generator=generator).tolist()
    for place in [*range(0, 64, 7), *places]:
        altered = bytearray(whole)
        altered[place // 8] ^= 1 << place % 8
        path.write_bytes(altered)
        with pytest.raises(MetagradError, match=rf"{name}\.safetensors (is damaged|has no checksum)"):
            Run.open(run).load(name)
    path.write_bytes(whole)
    Run.open(run).load(name)


def test_a_checkpoint_that_lost_its_checksum_is_refused(run):
    changed(run / "best.safetensors", lambda leaves, facts: None, digest=False)
    with pytest.raises(MetagradError, match="has no checksum"):
        Run.open(run).load("best")


def put(name, change):
    return lambda leaves, facts: leaves.__setitem__(name, change(leaves[name]))


def say(**facts):
    return lambda leaves, old: old.update(facts)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("theta/head.weight", torch.Tensor.double), "head.weight is of torch.float64"),
        (put("theta/head.weight", lambda leaf: leaf.reshape(-1)), "head.weight has shape"),
        (put("theta/head.weight", lambda leaf: leaf * float("nan")), "head.weight has numbers that are not finite"),
        (lambda leaves, facts: leaves.pop("theta/head.weight"), "head.weight is missing"),
        (lambda leaves, facts: leaves.update({"theta/more": torch.zeros(1)}), "more is one too many"),
        (say(best_step="x"), "invalid best_step"),
        (say(best_score=float("nan"), best_accuracy=float("nan")), "invalid best_score"),
        (say(best_score=True, best_accuracy=True), "invalid best_score"),
        (say(trained_as=1), "invalid trained_as"),
        (say(step=-1), "invalid step"),
        (say(step=4.0), "invalid step"),
        (say(window=None), "invalid window"),
        (say(window=[{"loss": "1"}]), "invalid window"),
        (say(seconds=float("inf")), "invalid seconds"),
        (say(metrics_bytes=-1), "invalid metrics_bytes"),
        (say(run="another"), "another run"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(run, tmp_path, change, says, old):
    if old:
        run = Path(shutil.copytree(OLD, tmp_path / "old"))
    for name in ("best", "last"):
        changed(run / f"{name}.safetensors", change, digest=not old)
    before = contents(run)
    for use in (lambda: measured(Run.open(run), toy(), tasks=2), lambda: go_on(run)):
        with pytest.raises(MetagradError, match=says):
            use()
    assert contents(run) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda leaves, facts: leaves.pop("adam/head.weight/exp_avg"), "adam/head.weight/exp_avg is missing"),
        (put("adam/head.weight/exp_avg", lambda leaf: leaf.reshape(-1)), "exp_avg has shape"),
        (put("adam/head.weight/exp_avg", lambda leaf: leaf * float("inf")), "not finite"),
        (put("adam/head.weight/exp_avg_sq", lambda leaf: -leaf - 1), "a mean of squares and negative"),
        (put("adam/head.weight/step", lambda leaf: leaf.reshape(1)), "step has shape"),
        (put("generator", torch.Tensor.float), "no row of bytes"),
        (put("generator", torch.zeros_like), "generator's state is invalid"),
        (lambda leaves, facts: leaves.pop("generator"), "generator is missing"),
        (lambda leaves, facts: leaves.update({"warm/phi/x": torch.zeros(1)}), "warm/phi/x is one too many"),
    ],
)
def test_a_state_that_cannot_be_gone_on_from_is_refused_before_anything_changes(run, change, says):
    changed(run / "last.safetensors", change)
    before = contents(run)
    with pytest.raises(MetagradError, match=says):
        go_on(run)
    assert contents(run) == before


def test_files_of_another_run_of_the_same_options_are_refused(run, tmp_path):
    with new_run(tmp_path / "other", meta_steps=20) as other:
        train(other, toy())
    for name in ("best.safetensors", "last.safetensors"):
        shutil.copy(tmp_path / "other" / name, run / name)
        with pytest.raises(MetagradError, match=f"{name} is a checkpoint of another run"):
            Run.open(run).load(name.partition(".")[0])
    shutil.copy(tmp_path / "other" / "result.json", run / "result.json")
    with pytest.raises(MetagradError, match=r"result\.json is another run's: remove it"):
        Run.open(run).read_measured("result.json", None)


def test_what_was_measured_on_earlier_weights_is_left_aside_and_said(run):
    opened = Run.open(run)
    assert opened.read_measured("result.json", opened.load("best").digest)["metric"] == "test_accuracy"
    with pytest.warns(MetagradWarning, match="measured on earlier weights"):
        assert opened.read_measured("result.json", "2:0") is None


@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_one_altered_number_in_json_is_noticed(run, name):
    path = run / name
    whole = path.read_text()
    for old, new in (("0.1.0", "0.1.1"), ('"seed": 0', '"seed": 1'), ('"test_tasks": 8', '"test_tasks": 9')):
        if old not in whole:
            continue
        path.write_text(whole.replace(old, new))
        with pytest.raises(MetagradError, match="altered since it was written"):
            Run.open(run).read_measured("result.json", None)
    without = json.loads(whole)
    del without["digest"]
    path.write_text(json.dumps(without))
    with pytest.raises(MetagradError, match="altered since it was written"):
        Run.open(run).read_measured("result.json", None)


def test_a_read_beside_a_writer_is_of_one_checkpoint(run):
    """The header of one and the weights of the next would be told by the weights alone."""
    opened = Run.open(run)
    state = opened.load("best")

    def of(number):
        return State({name: torch.full_like(leaf, number) for name, leaf in state.tensors.items()},
                     {**state.facts, "best_step": number})  # fmt: skip

    done = threading.Event()

    def write():
        while not done.is_set():
            opened.save("best", of(2))
            opened.save("best", of(4))

    writer = threading.Thread(target=write)
    opened.save("best", of(2))
    writer.start()
    try:
        for _ in range(200):
            found = opened.load("best")
            assert {float(leaf.flatten()[0]) for leaf in found.tensors.values()} == {found.facts["best_step"]}
    finally:
        done.set()
        writer.join()


def test_metrics_that_lost_their_end_are_said_and_cut_to_whole_lines(run):
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:150])
    rewritten(run / "config.json", lambda record: record["experiment"]["budget"].update(meta_steps=24, val_every=4))
    with pytest.warns(MetagradWarning, match=rf"has lost its end: 150 of {len(whole)} bytes"):
        assert go_on(run).result is not None
    for line in path.read_text().splitlines():
        json.loads(line)


def test_metrics_of_another_run_are_said(run):
    path = run / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b"5", b"6"))
    with pytest.warns(MetagradWarning, match=r"altered, or is another run's"):
        go_on(run)
    assert go_on(run).result is not None  # the next checkpoint knows it as it is now


def test_links_among_what_grows_are_refused_and_others_replaced(run, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (run / "result.json").unlink()
    (run / "result.json").symlink_to(victim)
    assert go_on(run).result is not None
    assert not (run / "result.json").is_symlink()
    for name in ("metrics.jsonl", "evaluations.jsonl", "checks.jsonl"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(victim)
        with pytest.raises(MetagradError, match=f"{name} is a link"):
            go_on(run)
        with pytest.raises(MetagradError, match=f"{name} is a link"):
            Run.open(run).append(name, {"step": 1})
        (run / name).unlink()
    assert victim.read_text() == "precious"


def test_a_hard_linked_copy_of_a_run_stays_as_it_was(run, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in run.iterdir():
        os.link(path, copy / path.name)
    before = contents(copy)
    rewritten(run / "config.json", lambda record: None)
    Run.open(run).append("metrics.jsonl", {"step": 1})
    go_on(run)
    before["config.json"] = (copy / "config.json").read_bytes()  # the test itself wrote through that one
    assert contents(copy) == before


@pytest.mark.parametrize("method", ["fomaml", "imaml", "r2d2"])
def test_divergence_keeps_the_last_state_that_gave_a_finite_gradient(tmp_path, monkeypatch, method):
    """The first steps are good; then the outer step is beyond all measure, long before a checkpoint is due."""
    options = {"inner_steps": None} if method == "r2d2" else {}
    real = loop.lr_at
    monkeypatch.setattr(loop, "lr_at", lambda asked, step, seconds: 1e25 if step >= 4 else real(asked, step, seconds))
    with new_run(tmp_path / "run", method=method, checkpoint_seconds=1e9, val_every=20, **options) as run:
        with pytest.raises(MetagradError, match=r"meta-step \d+: .*keeps its last good checkpoint") as caught:
            train(run, toy())
        assert "\n" not in str(caught.value)
        state = learned(run, "last")
    assert state.facts["step"] == 3
    assert run.metrics_fault(state) is None
    assert all(float(leaf.abs().max()) < 1e6 for leaf in state.theta.values())
    with new_run(tmp_path / "like", method=method, checkpoint_seconds=1e9, val_every=20, **options) as run:
        asked = iter(range(100))
        train(run, toy(), stop=lambda: next(asked) == 3)
    like = tensors(tmp_path / "like")
    assert all(torch.equal(leaf, like[name]) for name, leaf in state.tensors.items())


def test_a_loss_beyond_all_measure_is_a_divergence(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_numbers", lambda metrics: {"loss": 1e10, "grad_norm": 1.0})
    with new_run(tmp_path / "run") as run, pytest.raises(MetagradError, match=r"the loss is 1e\+10; probably .*lower"):
        train(run, toy())


def test_a_run_of_version_0_1_resumes_and_says_once_that_it_has_no_checksum(tmp_path):
    folder = Path(shutil.copytree(OLD, tmp_path / "old"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert Run.open(folder).load("last").facts["step"] == 26
        outcome = go_on(folder)
        Run.open(folder).load("best")
    assert sum("without a checksum" in str(one.message) for one in said) == 1
    assert outcome.result["value"] > 0.6  # chance is a third
    assert [line["step"] for line in Run.open(folder).metrics() if "val_accuracy" in line] == [10, 20, 30, 40]


@pytest.mark.parametrize("filters", [10**5, 10**9])
def test_a_network_larger_than_memory_is_refused_before_it_is_built(run, filters):
    rewritten(run / "config.json", lambda record: record["experiment"]["network"].update(filters=filters))
    for name in ("best", "last"):
        changed(
            run / f"{name}.safetensors", lambda leaves, facts: facts["trained_as"]["network"].update(filters=filters)
        )
    with pytest.raises(MetagradError, match="does not fit what"):
        go_on(run)
    with pytest.raises(MetagradError, match="does not fit what"):
        measured(Run.open(run), toy(), tasks=2)


def test_a_run_that_diverged_after_a_line_was_logged_does_not_log_it_twice(tmp_path, monkeypatch):
    """The state that is kept is older than the line."""
    real = loop.lr_at
    monkeypatch.setattr(loop, "lr_at", lambda asked, step, seconds: 1e25 if step == 10 else real(asked, step, seconds))
    with new_run(tmp_path / "run", method="fomaml", checkpoint_seconds=1e9, val_every=20) as run:
        with pytest.raises(MetagradError, match="meta-step 11"):
            train(run, toy())
        assert [line["step"] for line in run.metrics()] == [10]
        monkeypatch.setattr(loop, "lr_at", real)
        assert train(run, toy(), resume=True).result is not None
        assert [line["step"] for line in run.metrics() if "loss" in line] == [10, 20]


def test_a_run_whose_checkpoint_is_gone_says_that_it_begins_again(run):
    (run / "last.safetensors").unlink()
    with pytest.warns(MetagradWarning, match=r"has no last\.safetensors: .* begins again"):
        assert go_on_without(run).result is not None


def go_on_without(folder):
    with Run.open(folder) as opened:
        return train(opened, toy(), resume=True)


def test_lines_that_were_repeated_are_seen_and_those_of_later_steps_are_not_taken_for_them(run):
    opened = Run.open(run)
    state = opened.load("last")
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole + last)
    assert "was altered" in opened.metrics_fault(state)
    path.write_bytes(whole + last.replace(b'"step": 20', b'"step": 30') + b'{"step": 4')
    assert opened.metrics_fault(state) is None


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_checkpoint_that_is_a_link_to_nothing_is_not_taken_for_none(run, name):
    (run / f"{name}.safetensors").unlink()
    (run / f"{name}.safetensors").symlink_to("nowhere")
    opened = Run.open(run)
    assert opened.has(name)
    with pytest.raises(MetagradError, match=rf"{name}\.safetensors does not exist"):
        opened.load(name)
