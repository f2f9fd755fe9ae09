"""Drawings varied in training: each image by itself, by no more than was asked, from the tasks' generator."""

import math

import pytest
import torch
from toyruns import toy

from metagrad.data import Classes, ImageClasses
from metagrad.errors import MetagradError
from metagrad.fewshot import EpisodeSampler, Variation

STILL = {"shift": 0.0, "turn": 0.0, "shear": 0.0, "thickness": 0.0}


def varied(images, seed=0, **amounts):
    return Variation(**{**STILL, **amounts})(images, generator=torch.Generator().manual_seed(seed))


def drawn(count, seed=0):
    """Return what the generator gives each image: turn, shear, right, down, thickness, from -1 to 1."""
    return 2 * torch.rand(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float32) - 1


def blob(count, side=29):
    """Draw a soft spot in the middle of each image."""
    at = torch.arange(side) - side // 2
    return torch.exp(-(at[:, None] ** 2 + at**2) / 8.0).expand(count, 1, side, side).clone()


def centre(images):
    """Return where the ink is on average, to the right and down, in pixels from the middle."""
    at = torch.arange(images.shape[-1]) - images.shape[-1] // 2
    ink = images[:, 0] / images[:, 0].sum((1, 2), keepdim=True)
    return torch.stack([(ink.sum(1) * at).sum(1), (ink.sum(2) * at).sum(1)], 1)


def test_nothing_asked_leaves_images_as_they_are():
    images = torch.rand(4, 3, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(varied(images), images, atol=1e-5, rtol=0)


def test_shifts_are_as_many_pixels_as_were_drawn():
    found = centre(varied(blob(50), shift=3.0))
    torch.testing.assert_close(found, 3 * drawn(50)[:, 2:4], atol=0.02, rtol=0)
    turned = centre(varied(blob(50), shift=3.0, turn=90.0, shear=0.5))
    torch.testing.assert_close(turned, found, atol=0.02, rtol=0)


def test_turns_are_as_many_degrees_as_were_drawn_about_the_middle():
    images = torch.roll(blob(50), 8, -1)  # a spot to the right of the middle
    found = centre(varied(images, turn=40.0))
    angle = drawn(50)[:, 0] * math.radians(40)
    expected = 8 * torch.stack([angle.cos(), angle.sin()], 1)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


def test_slants_move_what_is_below_against_what_is_above():
    below = centre(varied(torch.roll(blob(50), 8, -2), shear=0.5))
    above = centre(varied(torch.roll(blob(50), -8, -2), shear=0.5))
    torch.testing.assert_close(below[:, 0], -8 * 0.5 * drawn(50)[:, 1], atol=0.05, rtol=0)
    torch.testing.assert_close(above, -below, atol=0.02, rtol=0)
    torch.testing.assert_close(below[:, 1], torch.full((50,), 8.0), atol=0.02, rtol=0)


def test_strokes_become_thicker_or_thinner_and_stay_between_paper_and_ink():
    images = torch.zeros(50, 1, 28, 28)
    images[..., 5:23, 12:15] = 1.0  # three pixels wide
    found = varied(images, thickness=1.0)
    pen = drawn(50)[:, 4]
    wide, high = 3 + 2 * pen, 18 + 2 * pen
    expected = torch.where(pen > 0, 54 + pen * (5 * 20 - 54), 54 + pen * (54 - 1 * 16))
    torch.testing.assert_close(found.sum((1, 2, 3)), expected, atol=0.01, rtol=0)
    assert found.min() >= 0
    assert found.max() <= 1
    assert ((wide > 3) == (high > 18)).all()


def test_a_sampler_varies_each_image_by_itself_and_draws_the_same_images():
    data = toy(drawings=8).train
    images = data.images.repeat_interleave(4, -1).repeat_interleave(4, -2)
    classes = ImageClasses(images, data.counts, data.names)
    plain = EpisodeSampler(classes=classes, ways=3, shots=2, queries=2, rotations=True)
    other = EpisodeSampler(classes=classes, ways=3, shots=2, queries=2, rotations=True, variation=Variation(**STILL))
    much = EpisodeSampler(classes=classes, ways=3, shots=2, queries=2, rotations=True, variation=Variation())
    a, b, c = (one(4, generator=torch.Generator().manual_seed(3)) for one in (plain, other, much))
    assert torch.equal(a.classes, b.classes)
    assert torch.equal(a.classes, c.classes)
    torch.testing.assert_close(a.support.x, b.support.x, atol=1e-5, rtol=0)
    torch.testing.assert_close(a.query.x, b.query.x, atol=1e-5, rtol=0)
    again = much(4, generator=torch.Generator().manual_seed(3))
    assert torch.equal(c.support.x, again.support.x)
    assert torch.equal(c.query.x, again.query.x)
    assert c.support.x.dtype == torch.float32
    assert c.query.y.tolist() == a.query.y.tolist()


def test_images_of_one_class_are_varied_apart():
    classes = ImageClasses((255 * blob(20)).to(torch.uint8), torch.tensor([10, 10]), ("a", "b"))
    sampler = EpisodeSampler(classes=classes, ways=2, shots=4, queries=6, variation=Variation())
    tasks = sampler(3, generator=torch.Generator().manual_seed(0))
    several = centre(torch.cat([tasks.support.x, tasks.query.x], 1).flatten(0, 1))
    assert len({tuple(row) for row in several.round(decimals=3).tolist()}) == 60
    assert several.abs().max() <= 2.01
    assert several.abs().max(0).values.min() > 1.5


@pytest.mark.parametrize(
    ("amounts", "says"),
    [
        ({"shift": -1.0}, "shift must be a number from 0 to 10000, got -1.0"),
        ({"turn": math.inf}, "turn must be a number from 0"),
        ({"shear": True}, "shear must be a number from 0"),
        ({"thickness": 1.5}, "thickness must be a number from 0 to 1, got 1.5"),
    ],
)
def test_amounts_that_cannot_be_are_refused(amounts, says):
    with pytest.raises(MetagradError, match=says):
        Variation(**amounts)


def test_only_drawings_are_varied():
    floats = Classes.from_arrays(torch.zeros(9, 1, 8, 8), torch.arange(9) % 3)
    wide = ImageClasses(torch.zeros(9, 1, 4, 5, dtype=torch.uint8), torch.tensor([3, 3, 3]), tuple("abc"))
    for classes, says in (
        (floats, "variation needs ImageClasses"),
        (wide, "variation needs square images, these are 4×5"),
        (Classes.from_arrays(torch.zeros(9, 4), torch.arange(9) % 3), r"variation needs images \(N, C, H, W\)"),
    ):
        with pytest.raises(MetagradError, match=says):
            EpisodeSampler(classes=classes, ways=2, shots=1, queries=1, variation=Variation())
