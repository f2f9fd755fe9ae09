"""Episodes: nothing twice, labels right, rotations whole, the same seed the same tasks, of any examples."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metagrad.data import Classes, ImageClasses
from metagrad.errors import MetagradError
from metagrad.fewshot import EpisodeSampler


def numbered(counts, side=4):
    """Make images that say who they are: pixel 0 holds the class, pixel 1 the drawing, the rest a corner mark."""
    images = torch.zeros(sum(counts), 1, side, side, dtype=torch.uint8)
    row = 0
    for label, count in enumerate(counts):
        for drawing in range(count):
            images[row, 0, 0, 0], images[row, 0, 0, 1] = 1 + label, 1 + drawing
            row += 1
    return ImageClasses(images, torch.tensor(counts), tuple(f"c{i}" for i in range(len(counts))))


def identify(x):
    pixels = (x * 255).round().long()
    return torch.stack([pixels[..., 0, 0, 0], pixels[..., 0, 0, 1]], -1)  # class + 1, drawing + 1


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    ways=st.integers(2, 4),
    shots=st.integers(1, 3),
    queries=st.integers(1, 3),
    counts=st.lists(st.integers(6, 11), min_size=4, max_size=9),
)
def test_support_and_query_never_share_an_image(seed, ways, shots, queries, counts):
    sampler = EpisodeSampler(classes=numbered(counts), ways=ways, shots=shots, queries=queries)
    drawn = sampler(8, generator=torch.Generator().manual_seed(seed))
    support, query = identify(drawn.support.x), identify(drawn.query.x)
    assert drawn.support.x.shape == (8, ways * shots, 1, 4, 4)
    for t in range(8):
        everything = torch.cat([support[t], query[t]]).tolist()
        assert len({tuple(pair) for pair in everything}) == ways * (shots + queries)
        of_label = {}
        for pair, label in zip(everything, torch.cat([drawn.support.y[t], drawn.query.y[t]]).tolist(), strict=True):
            assert of_label.setdefault(label, pair[0]) == pair[0], "one label, one class"
            assert pair[1] <= counts[pair[0] - 1]
        assert len(set(of_label.values())) == ways


def test_every_class_and_drawing_is_drawn_equally_often():
    sampler = EpisodeSampler(classes=numbered([4, 8, 4, 8]), ways=2, shots=1, queries=1)
    seen = identify(sampler(20000, generator=torch.Generator().manual_seed(0)).support.x).flatten(0, 1)
    by_class = torch.bincount(seen[:, 0] - 1) / len(seen)
    torch.testing.assert_close(by_class, torch.full((4,), 0.25), atol=0.01, rtol=0)
    drawings = torch.bincount(seen[seen[:, 0] == 2][:, 1] - 1).float()
    torch.testing.assert_close(drawings / drawings.sum(), torch.full((8,), 0.125), atol=0.015, rtol=0)


def test_rotations_turn_a_whole_class_by_quarter_turns():
    classes = numbered([6] * 5)
    plain = EpisodeSampler(classes=classes, ways=5, shots=2, queries=2)
    turned = EpisodeSampler(classes=classes, ways=5, shots=2, queries=2, rotations=True)
    a = plain(64, generator=torch.Generator().manual_seed(3))
    b = turned(64, generator=torch.Generator().manual_seed(3))
    turns = []
    for t in range(64):
        for label in range(5):
            images = torch.cat([a.support.x[t][a.support.y[t] == label], a.query.x[t][a.query.y[t] == label]])
            found = torch.cat([b.support.x[t][b.support.y[t] == label], b.query.x[t][b.query.y[t] == label]])
            matches = [k for k in range(4) if torch.equal(images.rot90(k, (-2, -1)), found)]
            assert len(matches) == 1
            turns += matches
    assert set(turns) == {0, 1, 2, 3}


def test_the_seed_decides_and_global_randomness_does_not():
    sampler = EpisodeSampler(classes=numbered([5] * 6), ways=3, shots=1, queries=2, rotations=True)
    torch.manual_seed(0)
    a = sampler(4, generator=torch.Generator().manual_seed(7))
    torch.manual_seed(1)
    b = sampler(4, generator=torch.Generator().manual_seed(7))
    assert torch.equal(a.query.x, b.query.x)
    assert not torch.equal(a.query.x, sampler(4, generator=torch.Generator().manual_seed(8)).query.x)


def digest(tasks):
    found = hashlib.sha256()
    for batch in (tasks.support, tasks.query):
        for part in (batch.x, batch.y):
            found.update(f"{part.dtype}{tuple(part.shape)}".encode() + part.numpy().tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize(
    ("rotations", "expected"),
    [(False, ["da22d9b57e69ebf0", "b40f5a48e35c767c"]), (True, ["84db0e0b30d5f468", "d7af920323ede670"])],
)
def test_a_seed_draws_what_it_always_did(rotations, expected):
    images = (torch.arange(31 * 2 * 6 * 6) * 7919 % 251).to(torch.uint8).view(31, 2, 6, 6)
    classes = ImageClasses(images, torch.tensor([5, 7, 4, 9, 6]), tuple("abcde"))
    one = EpisodeSampler(classes=classes, ways=3, shots=1, queries=2, rotations=rotations)
    two = EpisodeSampler(classes=classes.with_at_least(5), ways=3, shots=2, queries=3, rotations=rotations)
    generator = torch.Generator().manual_seed(7)
    one(5, generator=generator)
    assert [digest(sampler(4, generator=generator)) for sampler in (one, two)] == expected


@pytest.mark.parametrize("rotations", [False, True])
def test_tasks_know_which_classes_they_are_of(rotations):
    everything = numbered([6, 9, 7, 8, 6, 9])
    classes = everything.subset(["c5", "c0", "c3", "c2"])
    sampler = EpisodeSampler(classes=classes, ways=3, shots=2, queries=1, rotations=rotations)
    tasks = sampler(50, generator=torch.Generator().manual_seed(0))
    assert (tasks.classes.dtype, tasks.classes.shape) == (torch.int64, (50, 3))
    part = tasks.part(10, 20)
    assert torch.equal(part.classes, tasks.classes[10:20])
    # Without rotations, the same generator shows the same images upright.
    upright = EpisodeSampler(classes=classes, ways=3, shots=2, queries=1)(
        50, generator=torch.Generator().manual_seed(0)
    )
    shown = [[f"c{number - 1}" for number in row] for row in identify(upright.support.x)[:, ::2, 0].tolist()]
    assert shown == [[classes.names[number] for number in row] for row in tasks.classes.tolist()]


EXAMPLES = {
    "float features": torch.arange(40.0).view(20, 2),
    "double features": torch.arange(40.0, dtype=torch.float64).view(20, 2),
    "token ids": torch.arange(60).view(20, 3),
    "bytes that are no images": torch.arange(60, dtype=torch.uint8).view(20, 3),
    "float images": torch.arange(20.0)[:, None, None, None].expand(20, 1, 4, 4),
    "scalars": torch.arange(20.0),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_other_examples_than_images_stay_what_they_are(name):
    x, y = EXAMPLES[name], torch.arange(20) % 4
    sampler = EpisodeSampler(classes=Classes.from_arrays(x, y), ways=3, shots=2, queries=3)
    tasks = sampler(5, generator=torch.Generator().manual_seed(0))
    assert tasks.support.x.dtype == tasks.query.x.dtype == x.dtype
    assert tasks.support.x.shape == (5, 6, *x.shape[1:])
    assert tasks.query.x.shape == (5, 9, *x.shape[1:])
    rows = {tuple(row.flatten().tolist()): label for row, label in zip(x, y.tolist(), strict=True)}
    for t in range(5):
        for batch in (tasks.support, tasks.query):
            found = [rows[tuple(row.flatten().tolist())] for row in batch.x[t]]
            assert found == tasks.classes[t][batch.y[t]].tolist()


def test_a_nest_of_examples_is_drawn_together():
    ids = torch.arange(20)
    nest = {
        "ids": ids[:, None].repeat(1, 3),
        "more": (ids % 2 == 0, ids.to(torch.uint8)[:, None, None, None].repeat(1, 1, 2, 2)),
    }
    sampler = EpisodeSampler(classes=Classes.from_arrays(nest, ids % 4), ways=3, shots=1, queries=2)
    tasks = sampler(5, generator=torch.Generator().manual_seed(0))
    for batch, count in ((tasks.support, 3), (tasks.query, 6)):
        rows = batch.x["ids"][..., 0]
        assert batch.x["ids"].shape == (5, count, 3)
        assert torch.equal(batch.x["more"][0], rows % 2 == 0)
        torch.testing.assert_close(batch.x["more"][1], (rows / 255)[..., None, None, None].expand(5, count, 1, 2, 2))
        assert torch.equal(rows % 4, tasks.classes.gather(1, batch.y))


def test_a_range_of_ways_and_shots_gives_every_call_its_own():
    sampler = EpisodeSampler(classes=numbered([9] * 8), ways=(2, 5), shots=[1, 3], queries=2)
    generator = torch.Generator().manual_seed(0)
    sizes = []
    for _ in range(300):
        tasks = sampler(2, generator=generator)
        ways = tasks.classes.shape[1]
        shots = tasks.support.x.shape[1] // ways
        assert tasks.support.y.tolist() == [[way for way in range(ways) for _ in range(shots)]] * 2
        assert tasks.query.x.shape[:2] == (2, 2 * ways)
        sizes.append((ways, shots))
    counts = [sizes.count((ways, shots)) for ways in (2, 3, 4, 5) for shots in (1, 2, 3)]
    assert min(counts) > 8, "25 of each on average"
    again = sampler(3, generator=torch.Generator().manual_seed(0))
    assert digest(again) == digest(sampler(3, generator=torch.Generator().manual_seed(0)))
    fixed = EpisodeSampler(classes=numbered([9] * 8), ways=(3, 3), shots=1, queries=2)
    assert fixed(2, generator=generator).classes.shape == (2, 3)


def test_whole_numbers_of_numpy_are_whole_numbers():
    sampler = EpisodeSampler(classes=numbered([9] * 5), ways=np.int64(3), shots=np.int32(1), queries=np.uint8(2))
    assert sampler(np.int64(2), generator=torch.Generator().manual_seed(0)).query.x.shape == (2, 6, 1, 4, 4)
    assert type(sampler.shots) is int


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ways": 7}, "7 ways, but this split has 6"),
        ({"shots": 4, "queries": 2}, "class c2 has 4 images"),
        ({"ways": 1}, "ways must be at least 2"),
        ({"shots": 0}, "shots must be at least 1"),
        ({"queries": 0}, "queries must be at least 1"),
        ({"ways": True}, "ways must be a whole number, got True"),
        ({"shots": 1.0}, "shots must be a whole number, got 1.0"),
        ({"queries": "2"}, "queries must be a whole number, got '2'"),
        ({"queries": None}, "queries must be a whole number, got None"),
        ({"queries": (1, 2)}, "queries must be a whole number"),
        ({"ways": (2, 7)}, "7 ways, but this split has 6 classes: lower ways"),
        ({"ways": (5, 2)}, r"ways must be a range .*, got \(5, 2\): exchange the two"),
        ({"ways": (1, 3)}, "both ends of ways must be at least 2, got 1"),
        ({"shots": (1, 2, 3)}, r"whole number or a range .least, most."),
        ({"shots": (1, 4)}, r"4 shots \+ 1 queries, but class c2 has 4 images: .* classes.with_at_least\(5\)"),
    ],
)
def test_impossible_tasks_are_refused(options, says):
    with pytest.raises(MetagradError, match=says) as error:
        EpisodeSampler(classes=numbered([9, 9, 4, 9, 9, 9]), **{"ways": 2, "shots": 1, "queries": 1, **options})
    assert "\n" not in str(error.value)
    assert "--" not in str(error.value), "an option of the command is none of Python's"


def test_examples_that_cannot_be_drawn_from_are_refused():
    features = Classes.from_arrays(torch.zeros(9, 4), torch.arange(9) % 3)
    wide = ImageClasses(torch.zeros(9, 1, 4, 5, dtype=torch.uint8), torch.tensor([3, 3, 3]), tuple("abc"))
    for classes, rotations, says in (
        (torch.zeros(9, 4), False, "classes must be Classes, got Tensor"),
        (features, True, r"rotations need images \(N, C, H, W\)"),
        (Classes.from_arrays({"x": torch.zeros(9, 1, 4, 4)}, torch.arange(9) % 3), True, "rotations need images"),
        (wide, True, "rotations need square images, these are 4×5"),
    ):
        with pytest.raises(MetagradError, match=says):
            EpisodeSampler(classes=classes, ways=2, shots=1, queries=1, rotations=rotations)


@pytest.mark.parametrize(
    ("num_tasks", "device", "says"),
    [
        (0, "cpu", "num_tasks must be at least 1, got 0"),
        (2.0, "cpu", "num_tasks must be a whole number, got 2.0"),
        (2, "cuda", "the generator is on cuda, the examples on cpu: make it with torch.Generator"),
    ],
)
def test_impossible_draws_are_refused(num_tasks, device, says):
    sampler = EpisodeSampler(classes=numbered([9] * 3), ways=2, shots=1, queries=1)
    with pytest.raises(MetagradError, match=says):
        sampler(num_tasks, generator=SimpleNamespace(device=torch.device(device)))
