"""Episodes: nothing twice, labels right, rotations whole, the same seed the same tasks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metagrad.data import ImageClasses
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


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ways": 7}, "7 ways, but this split has 6"),
        ({"shots": 4, "queries": 2}, "class c2 has 4 images"),
        ({"ways": 1}, "ways must be at least 2"),
        ({"shots": 0}, "shots must be at least 1"),
    ],
)
def test_impossible_tasks_are_refused(options, says):
    with pytest.raises(MetagradError, match=says):
        EpisodeSampler(classes=numbered([9, 9, 4, 9, 9, 9]), **{"ways": 2, "shots": 1, "queries": 1, **options})
