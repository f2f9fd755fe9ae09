"""A picture read alone is what its data set would have made of it."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

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


def stroke(side, width):
    """Draw a sign from the upper left to the lower right of a square, on a page of its own."""
    page = Image.new("L", (300, 300), 250)
    points = [(20, 20), (280, 60), (60, 180), (280, 280)]
    ImageDraw.Draw(page).line(points, fill=10, width=width, joint="curve")
    return page.resize((side, side), Image.Resampling.LANCZOS)


def alike(one, other):
    """Return the correlation of two readings, blurred by a pixel."""
    parts = [sum(np.roll(x[0].astype(float), (a, b), (0, 1)) for a in (-1, 0, 1) for b in (-1, 0, 1)).ravel()
             for x in (one, other)]  # fmt: skip
    return np.corrcoef(*parts)[0, 1]


def test_strokes_are_read_as_omniglot_s_are():
    """One that takes as much of its square as most do, in its middle, is left as it is."""
    page = Image.new("L", (105, 105), 255)
    page.paste(stroke(77, 12), (14, 14))
    data = data_of(page.convert("1"))
    seen = STROKES(data)
    assert alike(seen, omniglot._decode("here", data)[None]) > 0.95
    assert seen.max() > 200


@pytest.mark.parametrize(("side", "x", "y"), [(20, 5, 80), (50, 30, 10), (105, 0, 0)])
def test_a_drawing_is_read_as_omniglot_s_alphabets_are(side, x, y):
    """Small or large, here or there: the same image, which is drawn on up to two pixels from its border."""
    page = Image.new("L", (105, 105), 255)
    page.paste(stroke(side, 24), (x, y))
    data = data_of(page.convert("1"))
    seen = Reading.of("omniglot-alphabets", None)(data)
    np.testing.assert_array_equal(seen, omniglot._decode("here", data, 0.85)[None])
    drawn = np.flatnonzero(seen[0].max(0) > 100)
    assert 1 <= drawn[0] <= 4
    assert 23 <= drawn[-1] <= 26


@pytest.mark.parametrize("noise", [0, 4])
def test_large_or_small_here_or_there_it_is_the_same(noise):
    plain, rng = STROKES(data_of(stroke(300, 14))), np.random.default_rng(0)
    for side, x, y in ((60, 0, 0), (90, 300, 20), (150, 250, 250), (390, 10, 0)):
        page = Image.new("L", (400, 400), 250)
        page.paste(stroke(side, 14), (x, y))
        for _ in range(5):  # specks of dust
            page.putpixel(tuple(rng.integers(0, 400, 2).tolist()), 20)
        grey = np.asarray(page, float) + rng.normal(0, noise, (400, 400))
        seen = STROKES(data_of(Image.fromarray(grey.clip(0, 255).astype(np.uint8))))
        assert alike(seen, plain) > 0.95, (side, x, y)
    assert alike(STROKES(data_of(stroke(300, 14).crop((15, 15, 285, 285)))), plain) > 0.98, "up to the border"


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


def shaded(image, light, seed=0):
    """Photograph a drawing in this light, with a camera's noise."""
    grey = np.asarray(image.convert("L"), float) * light
    noisy = grey + np.random.default_rng(seed).normal(0, 3, grey.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


LINE = np.linspace(-1, 1, 140)
LIGHTS = {
    "slope": 0.7 + 0.25 * LINE[None],
    "lamp": 0.95 - 0.3 * LINE[None] ** 2 - 0.2 * LINE[:, None] ** 2,
    "shadow": 0.75 - 0.15 * np.tanh(4 * LINE)[:, None],
}


@pytest.mark.parametrize("light", LIGHTS)
@pytest.mark.parametrize(("paper", "ink"), [(240, 30), (20, 220)])
def test_uneven_light_is_not_ink(light, paper, ink):
    image = drawing(140, 140, paper, ink)
    plain = STROKES(data_of(image)).astype(float)
    seen = STROKES(data_of(shaded(image, LIGHTS[light]))).astype(float)
    assert np.abs(seen - plain).mean() < 12
    assert np.corrcoef(seen.ravel(), plain.ravel())[0, 1] > 0.9
    if paper > ink and light != "shadow":  # of a shadow's edge something is left
        with pytest.raises(ValueError, match="nothing is drawn"):
            STROKES(data_of(shaded(Image.new("L", (140, 140), paper), LIGHTS[light])))


def test_ink_that_crosses_the_border_is_no_light():
    """A half of the page is black, with an edge: no smooth surface is like that."""
    image = Image.new("L", (140, 140), 240)
    ImageDraw.Draw(image).rectangle((-5, 60, 110, 150), fill=20)
    seen = STROKES(data_of(image))[0]
    assert max(seen[:5].max(), seen[-5:].max(), seen[:, :3].max()) <= 5, "in the middle, two thirds wide"
    assert seen[10:19, 7:21].min() >= 253


def test_white_ink_on_nothing_is_read():
    image = Image.new("RGBA", (105, 105), (255, 255, 255, 0))
    image.paste((255, 255, 255, 255), mask=drawing(paper=0, ink=255))
    assert np.abs(STROKES(data_of(image)).astype(int) - STROKES(data_of(drawing()))).max() <= 2


@pytest.mark.parametrize("most", [255, 4095, 65535])
def test_few_bits_in_sixteen_are_read(most):
    grey = np.asarray(drawing(), np.float64) / 255 * most
    seen = STROKES(data_of(Image.fromarray(grey.astype(np.uint16))))
    assert np.abs(seen.astype(int) - STROKES(data_of(drawing()))).max() <= 2


def test_the_reader_in_the_docs_reads_as_metagrad_does(tmp_path):
    """For those who use an exported network without metagrad; drawings in even light."""
    page = Path(__file__).parents[1] / "docs" / "howto" / "own-images.md"
    (block,) = re.findall(r"```python\n(import json.*?)```", page.read_text(encoding="utf-8"), re.S)
    readers = block[block.index("def photograph") : block.index("paths =")]
    scope = {"np": np, "Image": Image, "ImageOps": ImageOps}
    exec(readers, scope)
    for number, image in enumerate((drawing(), drawing(300, 200, 30, 220), stroke(90, 30), stroke(300, 14))):
        path = tmp_path / f"{number}.png"
        image.save(path)
        for reading in (STROKES, Reading.of("omniglot-alphabets", None)):
            theirs, ours = (
                scope["strokes"](path, **vars(reading)).astype(float),
                reading(path.read_bytes()).astype(float),
            )
            assert np.abs(theirs - ours).mean() < 2, (number, reading.fill)
    noise = torch.randint(0, 256, (40, 60, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(tmp_path / "p.png")
    theirs, ours = (
        scope["photograph"](tmp_path / "p.png", size=32, kind="photograph"),
        decode((tmp_path / "p.png").read_bytes(), 32),
    )
    assert np.abs(theirs.astype(float) - ours).mean() < 2
