"""Sinusoids: points of one curve a task, amplitude, phase and x as uniform as the literature has them."""

import math

import numpy as np
import pytest
import torch

from metagrad.fewshot import Sinusoids


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def draw(num_tasks, seed=0, **options):
    return Sinusoids(**{"shots": 6, "queries": 9, **options})(num_tasks, generator=torch.Generator().manual_seed(seed))


def curves(tasks):
    """Fit ``a sin x + b cos x`` to all points of each task: amplitude, phase, largest deviation."""
    x, y = (torch.cat([getattr(batch, part) for batch in (tasks.support, tasks.query)], 1) for part in "xy")
    basis = torch.cat([x.sin(), x.cos()], -1)
    found = torch.linalg.lstsq(basis, y).solution
    a, b = found[:, 0, 0], found[:, 1, 0]
    return torch.hypot(a, b), torch.atan2(-b, a), (basis @ found - y).abs().max()


def test_shapes():
    tasks = draw(3)
    assert len(tasks) == 3
    assert tasks.support.x.shape == tasks.support.y.shape == (3, 6, 1)
    assert tasks.query.x.shape == tasks.query.y.shape == (3, 9, 1)
    assert tasks.support.x.dtype == torch.float64


def test_support_and_query_are_on_one_curve_of_the_family():
    amplitude, phase, deviation = curves(draw(2000))
    assert deviation < 1e-8
    assert amplitude.min() > 0.1 - 1e-8
    assert amplitude.max() < 5 + 1e-8
    assert phase.min() > -1e-8
    assert phase.max() < math.pi + 1e-8


def test_amplitude_phase_and_x_are_uniform_and_independent():
    tasks = draw(20000)
    amplitude, phase, _ = curves(tasks)
    units = [
        (amplitude - 0.1) / 4.9,
        phase / math.pi,
        *((points + 5) / 10 for points in (tasks.support.x[:, 0, 0], tasks.query.x[:, 0, 0], tasks.query.x[:, 8, 0])),
    ]
    steps = (torch.arange(20000) + 0.5) / 20000
    for unit in units:
        # Kolmogorov–Smirnov: beyond this once in a thousand samples that are uniform.
        assert (unit.sort().values - steps).abs().max() < 1.95 / 20000**0.5
    correlation = torch.corrcoef(torch.stack(units)) - torch.eye(len(units))
    assert correlation.abs().max() < 4 / 20000**0.5


def test_noise_is_on_every_y_and_leaves_the_tasks_alone():
    clean, noisy = draw(5000), draw(5000, noise=0.3)
    for a, b in ((clean.support, noisy.support), (clean.query, noisy.query)):
        assert torch.equal(a.x, b.x)
        error = b.y - a.y
        assert abs(float(error.mean())) < 4 * 0.3 / error.numel() ** 0.5
        assert abs(float(error.std()) / 0.3 - 1) < 4 / (2 * error.numel()) ** 0.5


def test_the_generator_decides_and_global_randomness_does_not():
    torch.manual_seed(0)
    a = draw(4, seed=7, noise=0.1)
    torch.manual_seed(1)
    b = draw(4, seed=7, noise=0.1)
    for one, other in ((a.support, b.support), (a.query, b.query)):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.y, other.y)
    assert not torch.equal(a.query.y, draw(4, seed=8, noise=0.1).query.y)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shots": 0}, "shots must be at least 1, got 0"),
        ({"queries": -1}, "queries must be at least 1, got -1"),
        ({"shots": True}, "shots must be a whole number, got True"),
        ({"queries": 2.0}, "queries must be a whole number, got 2.0"),
        ({"noise": -0.1}, "noise must be finite"),
        ({"noise": math.nan}, "noise must be finite"),
        ({"noise": math.inf}, "noise must be finite"),
    ],
)
def test_impossible_samplers_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        Sinusoids(**{"shots": 1, "queries": 1, **options})


def test_numbers_may_be_numpy_s_and_tasks_are_at_least_one():
    tasks = Sinusoids(shots=np.int64(2), queries=np.uint8(3), noise=np.float32(0.1))(
        np.int32(4), generator=torch.Generator().manual_seed(0)
    )
    assert tasks.query.x.shape == (4, 3, 1)
    with pytest.raises(ValueError, match="num_tasks must be at least 1, got 0"):
        draw(0)


def test_a_seed_draws_what_it_always_did():
    torch.set_default_dtype(torch.float32)
    tasks = Sinusoids(shots=2, queries=3, noise=0.1)(2, generator=torch.Generator().manual_seed(3))
    assert tasks.classes is None
    expected = [[0.1286004, 0.0576132, -0.0846588], [0.3634297, 0.3077398, -0.5157925]]
    torch.testing.assert_close(tasks.query.y[:, :, 0], torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_tasks_are_where_the_generator_is():
    tasks = Sinusoids(shots=2, queries=3, noise=0.1)(4, generator=torch.Generator("cuda").manual_seed(0))
    assert {part.device.type for batch in (tasks.support, tasks.query) for part in batch} == {"cuda"}
