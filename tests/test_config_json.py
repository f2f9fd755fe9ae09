"""``config.json`` of a run: values that no run writes are refused and named."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from toyruns import new_run, rewritten

from metagrad.errors import MetagradError
from metagrad.experiment.run import Run
from metagrad.fewshot import IMAML

OLD = Path(__file__).parent / "runs" / "0.1"


@pytest.mark.parametrize(
    "change",
    [{"device": []}, {"filters": "2"}, {"filters": True}, {"lam": "x"}, {"method": 3}, {"method": "x"}, {"seed": 1.5}],
)
def test_options_of_format_1_of_another_type_are_named(tmp_path, change):
    folder = shutil.copytree(OLD, tmp_path / "old")
    rewritten(folder / "config.json", lambda record: record["config"].update(change))
    with pytest.raises(MetagradError, match=f"config.json is damaged .*--{next(iter(change))}"):
        Run.open(folder)


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("compute", "device"), 3, "Compute.device must be a text, got 3"),
        (("network", "filters"), "2", "Conv4Config.filters must be a whole number, got '2'"),
        (("network", "filters"), True, "Conv4Config.filters must be a whole number, got True"),
        (("method", "lam"), "x", "IMAML.lam must be a number, got 'x'"),
        (("method", "lam"), -1.0, "lam must be"),
        (("method", "unheard"), 1, "IMAML has no field 'unheard': it has"),
        (("method", "class"), "metagrad.fewshot:Nothing", "metagrad.fewshot has no Nothing"),
        (("method", "class"), "metagrad.files:os.system", "is no function or class of metagrad"),
        (("method", "class"), "metagrad.experiment.run:Run", "is no class of values"),
        (("method", "class"), 3, "3 is no import path: write package.module:name"),
        (("method", "solver", "class"), "metagrad.tree:dot", "is no class of values"),
        (("method", "solver"), 3, "must be"),
        (("tasks", "ways"), 1, "ways must be at least 2"),
        (("tasks", "dataset"), "omniglott", "no data set is called 'omniglott'"),
        (("outer", "optimizer"), "Adamm", "torch.optim has no 'Adamm'"),
        (("seed",), 1.5, "Experiment.seed must be a whole number"),
        (("budget",), [], "budget"),
    ],
)
def test_fields_that_are_unknown_or_of_another_type_are_named(tmp_path, place, value, says):
    new_run(tmp_path / "run")

    def change(record):
        part = record["experiment"]
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = value

    rewritten(tmp_path / "run" / "config.json", change)
    with pytest.raises(MetagradError, match=rf"config\.json is damaged .*{re.escape(says)}"):
        Run.open(tmp_path / "run")


def test_fields_that_are_missing_have_their_defaults_or_are_named(tmp_path):
    new_run(tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    rewritten(path, lambda record: record["experiment"]["method"].pop("lam"))
    assert Run.open(tmp_path / "run").experiment.method.lam == IMAML().lam
    rewritten(path, lambda record: record["experiment"]["tasks"].pop("dataset"))
    with pytest.raises(MetagradError, match=r"Episodes\.dataset is missing"):
        Run.open(tmp_path / "run")
