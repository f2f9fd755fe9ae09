"""Reports and live lines of any experiment: own metrics, no data set, results without ways; all names escaped."""

import io
import json
from dataclasses import replace

import own_code
import pytest
import torch
from html_page import Seen
from strokes import dataset
from torch.nn import functional as F

from metagrad import GradientDescent, MetagradError, data
from metagrad.cli import progress
from metagrad.cli.main import main
from metagrad.experiment import Budget, Episodes, Experiment, MLPConfig, Outer, Run, train
from metagrad.experiment.loop import Event
from metagrad.fewshot import MAML, Bilevel, Sinusoids, SquaredError
from metagrad.report.episodes import Confusion, Judged, Prediction, Row
from metagrad.report.figures import panels
from metagrad.report.page import RunView, page
from metagrad.report.quantities import metric_of, protocol_text

SHORT = Budget(meta_steps=12, tasks_per_step=2, val_every=4, val_tasks=4, test_tasks=6)
GRU = {"tasks": own_code.rhythms, "network": own_code.Rhythm}
# The experiment, its code, what the page calls its metric, and titles of its figures.
EXPERIMENTS = {
    "sinusoids": (
        Experiment(
            tasks=Sinusoids(shots=4, queries=4), network=MLPConfig(hidden=(8,)), budget=SHORT,
            method=MAML(inner_lr=0.02, loss=SquaredError()),
        ),
        [], "squared error", ["Squared error on validation tasks", "Squared error on training tasks"],
    ),
    "gru": (
        Experiment(**GRU, method=MAML(inner_lr=0.5, loss=own_code.smooth), budget=SHORT),
        ["own_code:Rhythm", "own_code:rhythms", "own_code:smooth"], "loss", ["Query loss on validation tasks"],
    ),
    "own metric": (
        Experiment(**GRU, method=MAML(inner_lr=0.5, metric=own_code.margin), budget=SHORT),
        ["own_code:Rhythm", "own_code:margin", "own_code:rhythms"], "margin",
        ["Margin on validation tasks", "Margin on training tasks", "Query loss on validation tasks"],
    ),
    "bilevel": (
        Experiment(tasks=own_code.columns, method=own_code.STRENGTHS, budget=SHORT, outer=Outer(lr=0.1)),
        [f"own_code:{name}" for name in ("columns", "misfit", "ridge", "zero_strengths", "zero_weights")], "loss",
        ["Query loss on validation tasks", "Residual of the linear system: 0 if it is solved"],
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*one by one")
@pytest.mark.parametrize(("experiment", "code", "metric", "titles"), EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_an_own_experiment_is_watched_and_reported(tmp_path, monkeypatch, capsys, experiment, code, metric, titles):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "_LOG_SECONDS", -1.0)
    with progress.TrainProgress(progress.Screen(), first_step=0, meta_steps=12) as watch:
        outcome = train(experiment, "own", report=watch)
    shown = capsys.readouterr().out
    last = [line for line in map(json.loads, (tmp_path / "own" / "metrics.jsonl").open()) if "val_ci95" in line][-1]
    key = f"val_{metric.replace(' ', '_')}"
    assert f"step 12/12: validation {metric} {last[key]:.4g} ± {last['val_ci95']:.2g}" in shown
    assert f"training {metric} " in shown
    assert main(["report", "own"]) == (2 if code else 0)
    assert ("--code" in capsys.readouterr().err) == bool(code)
    assert main(["report", "own", *(word for name in code for word in ("--code", name))]) == 0
    assert "no pictures" not in capsys.readouterr().out
    seen = Seen((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert f"{metric} {outcome.result['value']:.4g} ± {outcome.result['ci95']:.2g} measured on " in seen.said
    assert all(title in seen.text for title in titles)
    for absent in ("ccuracy", "by itself", "Tasks of validation classes", "nats", "None", "-way", "transductive"):
        assert absent not in seen.said, absent
    program = next(text for text in seen.text if "import Run" in text)
    exec(program, {})  # what the page says repeats it
    assert Run.open("own-again", code=code).read_measured("result.json", None)["value"] == outcome.result["value"]


@pytest.mark.filterwarnings("ignore:.*one by one")
def test_runs_of_several_metrics_stand_beside_each_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("sinusoids", "own metric"):
        train(EXPERIMENTS[name][0], name)
    train(EXPERIMENTS["sinusoids"][0], "begun", stop=lambda: True)
    words = [word for name in EXPERIMENTS["own metric"][1] for word in ("--code", name)]
    assert main(["report", "sinusoids", "own metric", "begun", *words]) == 0
    seen = Seen((tmp_path / "report.html").read_text(encoding="utf-8"))
    value, margin = (
        json.loads((tmp_path / name / "result.json").read_text())["value"] for name in ("sinusoids", "own metric")
    )
    assert f"result {value:.4g} ±" in seen.said
    assert ", squared error" in seen.said
    assert f"{margin:.4g} ±" in seen.said
    assert "not finished" in seen.said


def template():
    return {"template": torch.zeros(28 * 28, 5)}


def begin(theta):
    return dict(theta)


def far(phi, theta, batch):
    return F.cross_entropy(batch.x.flatten(1) @ phi["template"], batch.y)


def pulled(phi, theta, batch):
    return far(phi, theta, batch) + (phi["template"] - theta["template"]).square().sum()


def test_a_bilevel_problem_of_a_data_set_has_a_page_without_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "load", lambda *args, **options: dataset())
    method = Bilevel(theta=template, phi=begin, inner_objective=pulled, outer_objective=far,
                     solver=GradientDescent(lr=0.1, max_steps=3))  # fmt: skip
    train(Experiment(tasks=Episodes("omniglot", queries=2), method=method, budget=SHORT), "own")
    words = [word for name in ("template", "begin", "far", "pulled") for word in ("--code", f"{__name__}:{name}")]
    assert main(["report", "own", *words]) == 0
    seen = Seen((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "omniglot test" in seen.said
    assert "img" not in seen.tags


def run_named(name):
    """Return a run as the page shows it, every text of which is ``name``."""
    result = {"metric": name, "value": 0.5, "ci95": 0.1}
    protocol = {"dataset": name, "split": name, "tasks": 4, "transductive": False}
    lines = [{"step": step, "loss": 1.0, name: 2.0, "grad_norm": 0.5, f"own {name}": 3.0} for step in (1, 2)]
    lines.append({"step": 2, f"val_{name}": 2.0, "val_ci95": 0.1, "val_loss": 3.0})
    grid = [Row(name, ["data:,"], [Prediction("data:,", name, 0.5, False), Prediction("data:,", name, 0.9, True)])]
    record = {"versions": {name: name}, "command": ["metagrad", name]}
    judged = Judged([grid], [Confusion(name, name, 50.0, 2, ("data:,", "data:,"))], 0.9, 0.5, 2)
    about = {"tasks": name, name: name}
    return RunView(name, about, record, lines, {**result, "protocol": protocol}, None, judged)


@pytest.mark.parametrize(
    "name", ["<script>alert(1)<⁄script>", "\" onerror='x' <b>", "{{ 7 * 7 }}{% x %}", "&lt;b&gt;", "]]>-->"]
)
@pytest.mark.parametrize("long", ["", "x" * 60])
def test_names_are_text_wherever_they_stand(name, long):
    plain = Seen(page([run_named("plain" + long), run_named("other" + long)]))
    seen = Seen(page([run_named(name + long), run_named("other" + long)]))
    assert seen.tags == plain.tags
    assert [sorted(attrs) for _, attrs in seen.elements] == [sorted(attrs) for _, attrs in plain.elements]
    assert name + long in seen.text
    assert f"✗ {name + long} 50 %" in " ".join(seen.text)
    assert f"an example of {name + long}" in [attrs.get("alt") for _, attrs in seen.elements]


def test_every_key_is_drawn_the_known_first_and_others_under_more():
    lines = [{"step": s, "loss": s / 2, "my_score": s, "grad_norm": 1.0, "inner_steps": 3.0, "lam": s, "lam_max": s + 1}
             for s in (1, 2)]  # fmt: skip
    lines.append({"step": 2, "val_my_score": 2.0, "val_ci95": 0.5, "val_loss": 3.0})
    found = panels([("a", lines), ("b", [{"step": 1, "odd": 4.0}])])
    assert [panel.title for panel in found if not panel.more] == [
        "My score on validation tasks", "My score on training tasks", "Query loss on validation tasks",
        "Query loss on training tasks",
    ]  # fmt: skip
    assert [panel.title for panel in found if panel.more] == [
        "Inner gradient norm: 0 if the inner problems are solved", "Inner steps taken", "lam", "lam max", "odd",
    ]  # fmt: skip
    by = {panel.title: panel for panel in found}
    assert by["My score on validation tasks"].curves[0].ci95 == [0.5]
    assert by["Query loss on validation tasks"].curves[0].ci95 is None
    assert by["odd"].curves[0].run == 1
    assert by["Query loss on training tasks"].unit == ""
    accurate = {
        panel.title: panel for panel in panels([("a", [{"step": 1, "loss": 1.0, "accuracy": 0.5, "grad_norm": 1}])])
    }
    assert accurate["Query loss on training tasks"].unit == "nats"
    assert accurate["Accuracy on training tasks"].curves[0].values == [50.0]
    twice = panels([("a", [{"step": 1, "loss": 0.5, "squared_error": 0.5, "grad_norm": 1.0}])])
    assert not any("loss" in panel.title for panel in twice), "the loss is the metric itself"


@pytest.mark.parametrize(
    ("line", "metric"),
    [
        ({"step": 1, "val_loss": 0.5, "val_ci95": 0.1}, "loss"),
        ({"step": 1, "val_ci95": 0.1, "val_loss": 0.5, "val_margin": 0.3}, "margin"),
        ({"step": 1, "loss": 0.5, "grad_norm": 0.1, "residual": 0.2}, "loss"),
        ({"step": 1, "loss": 0.5, "margin": 0.3, "grad_norm": 0.1}, "margin"),
        ({"step": 1, "loss": 0.5}, "loss"),
        ({"step": 1}, "loss"),
    ],
)
def test_the_metric_of_a_line(line, metric):
    assert metric_of(line) == metric


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"loss": 0.5, "accuracy": 0.75, "grad_norm": 0.1}, "training accuracy 75.0 %  inner gradient norm 0.1"),
        (
            {"loss": 0.5, "squared_error": 0.5, "grad_norm": 0.1, "lam": 2.0},
            "training squared error 0.5  inner gradient norm 0.1  lam 2",
        ),
        (
            {"loss": 0.5, "grad_norm": 0.1, "stopped": 0.5},
            "training loss 0.5  inner gradient norm 0.1  stopped at negative curvature 50 %",
        ),
        (
            {"loss": 0.5, "grad_norm": 0.1, "residual": 0.2},
            "training loss 0.5  inner gradient norm 0.1  linear residual 0.2",
        ),
    ],
)
def test_live_lines_say_whatever_there_is(line, says):
    assert progress.describe({"step": 1, **line}, verbose=True) == says
    assert progress.describe({"step": 1, **line}) == says.split("  ")[0], "diagnostics only with --verbose"


def test_weights_to_begin_at_are_told_once_and_as_they_are():
    stream = io.StringIO()
    screen = progress.Screen()
    screen.file = stream
    watch = progress.TrainProgress(screen, first_step=0, meta_steps=12)
    watch(Event(0, 12, {"init": ["copied 1 of 2 tensors from [bold]a[/bold]", "  not used: b"]}))
    for step in (10, 12):
        watch(Event(step, 12, {"step": step, "loss": 1.0, "grad_norm": 1.0}))
    watch(Event(12, 12, {"step": 12, "val_[red]": 0.5, "val_ci95": 0.1, "val_loss": 1.0}))
    told = stream.getvalue()
    assert told.startswith("copied 1 of 2 tensors from [bold]a[/bold]\n  not used: b\n")
    assert told.count("copied") == 1
    assert "validation [red] 0.5 ± 0.1" in told


@pytest.mark.parametrize("verbose", [False, True])
def test_live_lines_compare_with_chance_once_and_end_with_the_minutes(monkeypatch, verbose):
    monkeypatch.setattr(progress, "_LOG_SECONDS", -1.0)
    screen = progress.Screen()
    screen.file = io.StringIO()
    watch = progress.TrainProgress(screen, first_step=0, meta_steps=10**9, chance=0.2, minutes=10.0, verbose=verbose)
    watch(Event(10, 10**9, {"step": 10, "loss": 1.0, "accuracy": 0.5, "grad_norm": 0.3, "seconds": 540.0}))
    for step in (10, 20):
        watch(Event(step, 10**9, {"step": step, "val_accuracy": 0.615, "val_ci95": 0.047, "val_loss": 1.0}))
    first, second, third = screen.file.getvalue().splitlines()
    assert first.startswith("step 10/1000000000: training accuracy 50.0 %")
    assert ("inner gradient norm 0.3" in first) == verbose
    assert first.endswith("steps/s, 0:01:00 left)")
    assert second.endswith("validation accuracy 61.5 ± 4.7 % (chance 20 %)")
    assert third.endswith("validation accuracy 61.5 ± 4.7 %")


def test_tasks_of_a_result_are_told_as_far_as_its_protocol_goes():
    bare = {"dataset": "rhythms", "split": "test", "tasks": 6, "transductive": False}
    assert protocol_text(bare) == "rhythms test, 6 tasks"
    assert protocol_text({**bare, "transductive": True}) == "rhythms test, 6 tasks, transductive"
    assert protocol_text({**bare, "ways": 5, "shots": 1, "queries": 3}) == (
        "rhythms test, 5-way 1-shot, 3 queries a class, 6 tasks, not transductive"
    )


def test_a_run_s_name_ends_no_comment_of_the_program():
    shown = replace(
        run_named("a"), label="a\nimport os", record={"versions": {}, "command": [], "experiment": {"network": {}}}
    )
    text = next(text for text in Seen(page([shown])).text if "import Run" in text)
    assert [line.split()[0] for line in text.splitlines()] == ["#", "from", "train(Run.open('a\\nimport"]


def test_a_module_given_in_python_is_repeated_by_its_program(tmp_path, monkeypatch):
    from torch import nn

    monkeypatch.chdir(tmp_path)
    experiment = Experiment(tasks=Sinusoids(shots=4, queries=4), network=nn.Linear(1, 1), budget=SHORT,
                            method=MAML(inner_lr=0.02, loss=SquaredError()))  # fmt: skip
    train(experiment, "own", stop=lambda: True)
    run = Run.open("own", experiment=experiment)
    text = page([RunView("own", {"tasks": "Sinusoids"}, run.record, [], {}, None, None)])
    assert "run that program again" in Seen(text).said
    with pytest.raises(MetagradError, match="was given as a module"):
        Run.open("own")
