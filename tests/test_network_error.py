"""The diagnostic on a trained network: its rows are what they say, and the accurate gradient is where steps lead."""

import pytest
from toyruns import new_run, sources, toy, train

from metagrad.errors import MetagradError
from metagrad.recipes.figures import draw_network, save
from metagrad.recipes.network_error import ACTIVATIONS, ADJOINTS, measure
from metagrad.recipes.protocols import NetworkProtocol


@pytest.mark.slow
def test_rows_of_a_trained_network(tmp_path):
    with new_run(tmp_path / "run", meta_steps=20) as run:
        train(run, toy())
    done = []
    protocol = NetworkProtocol(tasks=2, lams=(2.0,), steps=(1, 300))
    rows = measure(run, sources(run, toy()), protocol, lambda now, total: done.append((now, total)))
    assert done == [(0, 2), (1, 2), (2, 2)]
    assert len(rows) == len(ACTIVATIONS) * len(ADJOINTS) * 2
    smooth = {(row.method, row.inner_steps): row for row in rows if row.activation == "softplus"}
    solved = "exact Hessian, solved"
    assert smooth[solved, 300].cosine > 0.9999
    assert smooth[solved, 300].error < 1e-2
    assert smooth[solved, 1].error > 10 * smooth[solved, 300].error
    assert smooth["first order", 300].error > 0.05  # no solve, so no number of steps helps
    assert smooth["first order", 300].residual != smooth["first order", 300].residual
    for row in rows:
        assert abs(row.cosine) <= 1 + 1e-12
        # The law of cosines ties the three together.
        assert row.error**2 == pytest.approx(1 + row.length**2 - 2 * row.length * row.cosine, abs=1e-9)
    save(draw_network(rows, "caption"), tmp_path / "figure.png", "png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_a_run_of_another_method_is_refused(tmp_path):
    with new_run(tmp_path / "run", meta_steps=10, method="maml") as run:
        train(run, toy())
        with pytest.raises(MetagradError, match="a run of maml"):
            measure(run, sources(run, toy()), NetworkProtocol())
