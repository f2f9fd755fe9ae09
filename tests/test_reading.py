"""A picture read alone is what its data set would have made of it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from metagrad.data import omniglot
from metagrad.data.pictures import decode
from metagrad.data.reading import Reading

STROKES = Reading.of("omniglot", None)


def drawing(width=105, height=105, paper=255, ink=0, mode="L"):
    image = Image.new(mode, (width, height), paper)
    draw = ImageDraw.Draw(image)
    draw.line((width * 0.2, height * 0.3, width * 0.8, height * 0.7), fill=ink, width=3)
    draw.ellipse((width * 0.4, height * 0.4, width * 0.6, height * 0.8), outline=ink, width=2)
    return image


def data_of(image, kind="PNG"):
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def test_strokes_are_read_as_omniglot_s_are():
    data = data_of(drawing().convert("1"))
    assert np.array_equal(STROKES(data), omniglot._decode("here", data)[None])
    assert STROKES(data).max() > 200


@pytest.mark.parametrize(("paper", "ink"), [(0, 255), (220, 40), (60, 250)])
def test_whichever_is_the_ink(paper, ink):
    """Light on dark, grey paper, faint pencil: the same strokes but for rounding."""
    plain = STROKES(data_of(drawing())).astype(int)
    assert np.abs(STROKES(data_of(drawing(paper=paper, ink=ink))).astype(int) - plain).max() <= 2


def test_nothing_is_cut_off_a_long_picture():
    wide = STROKES(data_of(drawing(width=400, height=100)))
    assert wide.shape == (1, 28, 28)
    rows = np.flatnonzero(wide[0].max(1) > 60)
    assert rows.min() >= 9
    assert rows.max() <= 18
    assert wide[0, :, :7].max() > 60


def test_a_blank_page_is_refused():
    with pytest.raises(ValueError, match="nothing is drawn"):
        STROKES(data_of(Image.new("L", (50, 50), 240)))


def test_photographs_are_read_as_folders_are():
    noise = torch.randint(0, 256, (40, 60, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = data_of(Image.fromarray(noise.numpy()))
    for dataset, size, expected in (("folder", 84, 84), ("cifar-fs", None, 32)):
        reading = Reading.of(dataset, size)
        assert (reading.kind, reading.size, reading.channels) == ("photograph", expected, 3)
        assert np.array_equal(reading(data), decode(data, expected))
