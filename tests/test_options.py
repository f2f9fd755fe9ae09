"""The options of ``metagrad train``: those of what is chosen, from the values, and into the experiment."""

import dataclasses

import pytest
from commands import complaint, experiment, flags_in, flat, help_of

from metagrad import CG, MINRES, Adam, FirstOrder, Implicit, Neumann, Woodbury, fewshot
from metagrad.cli import generate
from metagrad.cli.choices import Plan
from metagrad.cli.parts import OPTIONS, table
from metagrad.cli.train import Train
from metagrad.experiment import Budget, Compute, Conv4Config, Episodes, MLPConfig, Outer, ResNet12Config, TaskSet

METHODS = sorted(table()["choices"]["method"])
METHOD_OF = {name: getattr(fewshot, path.split(":")[1])() for name, path in table()["choices"]["method"].items()}
ALWAYS = {
    "--tasks", "--task-set", "--run", "--run-dir", "--resume", "--code", "--data-dir", "--split", "--strict",
    "--no-strict", "--tensorboard", "--no-tensorboard", "--seed", "--method", "--metric", "--loss", "--network",
    "--init", "--calibrate", "--no-calibrate", "--verbose", "--no-verbose", "--help",
}  # fmt: skip


def plain(value, prefix="", *, but=()):
    """Return the flags of a value's fields, those that hold numbers or texts."""
    names = {
        one.name
        for one in dataclasses.fields(value)
        if one.name not in ("loss", "metric", "solver", "adjoint", "linear_solver", "x0", "measure", "dataset", *but)
    }
    flags = {f"--{prefix}{name.replace('_', '-')}" for name in names}
    switches = {f"--{prefix}{name.replace('_', '-')}" for name in names if isinstance(getattr(value, name), bool)}
    return flags | {flag.replace("--", "--no-", 1) for flag in switches}


def steps(flags):
    return {flag.replace("-max-steps", "-steps") for flag in flags}


def test_the_table_of_options_is_that_of_the_values():
    assert OPTIONS.read_text(encoding="utf-8") == generate.text(), "write it: python -m metagrad.cli.generate"


@pytest.mark.parametrize("method", METHODS)
def test_help_shows_the_options_of_what_is_chosen_and_no_other(capsys, method):
    value = METHOD_OF[method]
    wanted = ALWAYS | plain(Episodes("omniglot")) | plain(value.loss) | plain(Conv4Config())
    wanted |= plain(Outer(), but=("lr",)) | {"--outer-lr"} | plain(Budget()) | plain(Compute())
    # Meta-SGD is MAML with less to choose.
    wanted |= {"--inner-lr", "--inner-steps"} if method == "meta-sgd" else plain(value)
    if hasattr(value, "solver"):
        wanted |= steps(plain(value.solver, "inner-")) | {"--inner-solver"}
    if hasattr(value, "adjoint"):
        linear = steps(plain(value.adjoint.linear_solver, "cg-", but=("history",)))
        wanted |= linear | plain(value.adjoint) | {"--linear-solver"}
    assert flags_in(help_of(capsys, f"train --method {method}")) == wanted


def test_help_follows_every_choice(capsys):
    words = "train --network mlp --loss squared-error --inner-solver lbfgs --linear-solver neumann"
    shown = flags_in(help_of(capsys, words))
    assert {"--hidden", "--inner-history", "--neumann-terms", "--neumann-lr"} <= shown
    assert not {"--filters", "--class-weight", "--inner-lr", "--cg-steps"} & shown
    first = flags_in(help_of(capsys, "train --linear-solver none"))
    assert "--linear-solver" in first
    assert not {"--curvature", "--cg-steps"} & first
    assert "photographs. (default: yes)" in flat(help_of(capsys, "train mini-imagenet")), "of --pooling"
    assert "photographs. (default: yes)" not in flat(help_of(capsys, "train mini-imagenet --network conv4"))
    assert "Here: maml." in flat(help_of(capsys, "train --method maml"))


@pytest.mark.parametrize("method", METHODS)
def test_without_options_a_method_is_its_own_default(method):
    asked = experiment(f"glyphs --method {method}")
    assert asked.method == METHOD_OF[method]
    assert (asked.tasks, asked.network) == (Episodes("glyphs"), Conv4Config())
    assert (asked.outer, asked.compute, asked.seed) == (Outer(lr=0.01), Compute(), 0)
    assert asked.budget == Budget(meta_steps=500, val_every=50, tasks_per_step=16)


OTHER = {"device": "cuda", "head": "last.*", "adapts": "a.*", "optimizer": "SGD", "average": "0.25", "momentum": "0.25",
         "tol": "0.25", "label_smoothing": "0.25", "image_size": "28",
         "max_size": "99999"}  # fmt: skip


def other(option):
    """Return a word, or words, for an option's value that is not its default, and the value."""
    name = option.name.split(".")[1]
    if option.kind == "bool":
        return [option.flag.replace("--", "--no-", 1) if option.default else option.flag], not option.default
    if option.choices:
        word = next(choice for choice in option.choices if choice != option.default)
    else:
        word = OTHER.get(name, {"int": "3", "float": "0.75", "str": "x"}[option.kind])
    made = {"int": int, "float": float, "str": str}[option.kind]
    if option.many is None:
        return [option.flag, word], made(word)
    count = option.many or 3
    return [option.flag, *[word] * count], (made(word),) * count


# EfficientNet-Lite 1 and 2 have the options of 0.
NETWORKS = [
    name for name in [*sorted(table()["choices"]["network"]), "conv4-pool"] if name[-5:] not in ("lite1", "lite2")
]
CHOICES = [
    *[f"glyphs --method {method}" for method in METHODS],
    *[f"glyphs --inner-solver {solver}" for solver in sorted(table()["choices"]["inner-solver"])],
    *[f"glyphs --linear-solver {solver}" for solver in sorted(table()["choices"]["linear-solver"])],
    *[f"glyphs --network {network}" for network in NETWORKS],
    *[f"glyphs --loss {loss}" for loss in sorted(table()["choices"]["loss"])],
    "mini-imagenet --method memory-reduced",
]


def holder(found, role):
    """Return the value that has a role's fields."""
    method = found.method
    return {
        "method": lambda: method,
        "tasks": lambda: found.tasks,
        "network": lambda: found.network,
        "loss": lambda: method.loss,
        "inner-solver": lambda: method.solver,
        "adjoint": lambda: method.adjoint,
        "linear-solver": lambda: method.adjoint.linear_solver,
        "outer": lambda: found.outer,
        "budget": lambda: found.budget,
        "compute": lambda: found.compute,
    }[role]()


@pytest.mark.parametrize("chosen", CHOICES)
def test_every_option_arrives_in_the_experiment(chosen):
    """One at a time: some do not go together."""
    parts = Plan.of(chosen.split()).parts
    options = [option for part in parts.values() for option in part.options]
    if not chosen.endswith(("imaml", "memory-reduced")):  # once or twice is enough for what all have
        options = [option for option in options if option.name.split(".")[0] not in ("outer", "budget", "compute")]
    for option in options:
        role, name = option.name.split(".")
        if (name == "image_size" and "imagenet" not in chosen) or (name == "curvature" and "woodbury" in chosen):
            continue
        if name == "train_ways" and not holder(Train.parsed(chosen.split(), "").experiment(), "method").any_ways:
            continue
        if name == "variation" and "imagenet" in chosen:
            continue
        if name == "centred":  # for body nothing alone: tests/test_pretrained.py
            continue
        also = {"precision": " --device cuda", "pools": " --pooling"}.get(name, "")
        words, value = other(option)
        found = Train.parsed([*(chosen + also).split(), *words], "metagrad train").experiment()
        assert getattr(holder(found, role), name) == value, option.flag


def test_what_defaults_depend_on():
    assert experiment("mini-imagenet").network == Conv4Config(pooling=True)
    assert experiment("mini-imagenet --filters 64").network == Conv4Config(pooling=True, filters=64)
    assert experiment("omniglot --network conv4-pool --filters 8").network == Conv4Config(pooling=True, filters=8)
    assert experiment("omniglot --network resnet12").network == ResNet12Config()
    assert experiment("omniglot --network mlp --hidden 9 8").network == MLPConfig(hidden=(9, 8))
    solver = experiment("glyphs --method memory-reduced --inner-solver gd").method.solver
    assert (solver.lr, solver.max_steps) == (0.1, 20), "descent needs more steps than Newton's method"
    assert experiment("glyphs --inner-solver nesterov").method.solver.lr == 0.1
    assert experiment("glyphs --inner-solver adam").method.solver == Adam(lr=0.01, max_steps=5)
    assert experiment("glyphs --linear-solver minres").method.adjoint.linear_solver == MINRES(max_steps=5)
    reduced = experiment("glyphs --method memory-reduced --linear-solver minres").method.adjoint
    assert reduced == Implicit(linear_solver=MINRES(max_steps=20), curvature="gauss_newton")
    series = experiment("glyphs --inner-lr 0.2 --linear-solver neumann").method.adjoint.linear_solver
    assert series == Neumann(terms=5, lr=0.05), "a quarter of the inner step size"
    assert experiment("glyphs --linear-solver neumann --neumann-lr 0.3").method.adjoint.linear_solver.lr == 0.3
    assert experiment("glyphs --inner-solver lbfgs --linear-solver neumann").method.adjoint.linear_solver.lr == 0.025
    assert experiment("glyphs --linear-solver woodbury").method.adjoint.linear_solver == Woodbury()
    assert experiment("glyphs --linear-solver none").method.adjoint == FirstOrder()
    assert experiment("glyphs --cg-steps 7").method.adjoint.linear_solver == CG(max_steps=7)


def test_more_than_one_way_to_say_it():
    assert experiment("glyphs --tasks 7") == experiment("glyphs --tasks-per-step 7")
    assert experiment("--tasks glyphs --ways 3") == experiment("glyphs --ways=3") == experiment("--ways 3 glyphs")
    assert experiment("glyphs --tasks_per_step 7") == experiment("--tasks-per-step=7 glyphs")
    assert experiment("glyphs --method maml --keep-every 2").method.checkpoint == 2
    assert experiment("glyphs --method maml --learn-inner-lr scalar").method.learn_lr == "scalar"
    assert experiment("glyphs --strict --seed 3").seed == experiment("--strict glyphs --seed 3").seed == 3
    assert experiment("glyphs --optimizer adamw").outer.optimizer == "AdamW"
    fixed = experiment("glyphs --method memory-reduced --task-set 9").tasks
    assert fixed == TaskSet(tasks=Episodes("glyphs"), count=9)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--lam -1", "--lam must be a number, positive and finite, got -1.0"),
        ("--lam nan", "--lam must be"),
        ("--inner-steps 0", "--inner-steps must be a whole number of at least 1"),
        ("--inner-steps 1.5", "--inner-steps must be a whole number, got '1.5'"),
        ("--inner-lr a", "--inner-lr must be a number, got 'a'"),
        ("--inner-tol -1", "--inner-tol must"),
        ("--learn-lam foo", "--learn-lam is one of fixed, scalar, tensor, parameter, got 'foo'"),
        ("--method itd-bio --l2 -1", "--l2 must"),
        ("--outer-lr inf", "--outer-lr must be positive and finite"),
        ("--meta-steps 0", "--meta-steps must be at least 1"),
        ("--test-tasks 1", "--test-tasks must be 0 or at least 2"),
        ("--ways 1", "--ways must be at least 2"),
        ("--ways", "--ways expected one argument"),
        ("--seed -1", "--seed must be at least 0"),
        ("--weight-decay -1", "--weight-decay must be"),
        ("--average 2", "--average must be above 0 and below 1"),
        ("--optimizer adamm", "torch.optim has no 'adamm'"),
        ("--label-smoothing 2", "--label-smoothing must be in [0, 1)"),
        ("--network mlp --hidden 3 x", "--hidden must be a whole number, got 'x'"),
        ("--waays 3", "there is no option --waays (did you mean --ways?)"),
        ("--way 3", "there is no option --way (did you mean --ways?)"),
        ("--method mamll", "got 'mamll' (did you mean maml?)"),
        ("--network conv5", "(did you mean conv4?)"),
        ("--inner-solver newton", "or package.module:name of your own, got 'newton'"),
        ("omniglot", "unexpected argument 'omniglot'"),
        ("--tasks omniglot", "leave one out"),
        ("--method maml --inner-solver adam", "--inner-solver is for imaml, memory-reduced, not maml: leave it out"),
        ("--method maml --lam 1", "--lam is for imaml, not maml: leave it out"),
        ("--method protonet --inner-lr 0.1", "not protonet: leave it out"),
        ("--method maml --cg-steps 3", "--cg-steps is for imaml, memory-reduced, not maml"),
        ("--learn-lr scalar", "--learn-lr is for maml, not imaml"),
        ("--inner-solver lbfgs --inner-lr 0.1", "adam, gradient-descent, nesterov, not lbfgs: leave it out"),
        ("--linear-solver woodbury --cg-steps 7", "--cg-steps is for --linear-solver cg, not woodbury"),
        ("--linear-solver none --curvature hessian", "not none: leave it out"),
        ("--network mlp --norm group", "--norm is for --network conv4, not mlp"),
        ("--loss squared-error --label-smoothing 0.1", "is for --loss cross-entropy, not squared-error"),
        ("--method maml --truncate 1 --checkpoint 2", "--truncate and --checkpoint do not go together"),
        ("--method maml --truncate 1 --learn-lr scalar", "leave out --truncate"),
        ("--linear-solver none --learn-lam scalar", "--learn-lam has no effect with --linear-solver none"),
        ("--linear-solver woodbury --curvature hessian", "woodbury needs --curvature gauss_newton"),
        ("--linear-solver woodbury --ways 20 --shots 10", "= 4000 here, beyond 1024: use cg"),
        ("--image-size 84", "--image-size is for data sets of pictures, not glyphs"),
        ("--method maml --task-set 10", "--task-set needs a linear system to go on with"),
        ("--method memory-reduced --task-set 9 --linear-solver none", "leave out --linear-solver none"),
        ("--precision tf32", "precision tf32 is for GPUs"),
        ("--train-ways 9", "--train-ways must equal ways for imaml"),
        ("--train-ways 1", "--train-ways must be at least 2"),
        ("--variation 3", "--variation must be a number from 0 to 2"),
        ("--linear-solver woodbury --train-shots 100", "= 2500 here, beyond 1024"),
    ],
)
def test_what_cannot_be_is_named_by_its_option(capsys, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    assert says in complaint(capsys, f"train glyphs {words}")
    assert not list(tmp_path.iterdir())


def test_methods_begin_with_solvers_whose_steps_are_known():
    solvers = {type(value.solver).__name__ for value in METHOD_OF.values() if hasattr(value, "solver")}
    assert solvers == {"GradientDescent", "HessianFree"}, "defaults of others need a look at choices._STEPS"
