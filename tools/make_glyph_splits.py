"""Choose the classes of the glyphs data set and write ``src/metagrad/data/splits/glyphs.json``.

    python tools/make_glyph_splits.py                     # about fifteen minutes on one core
    python tools/make_glyph_splits.py --montage pairs.png # also draw the closest pairs that both stay

Candidates are the letters (Unicode categories Lu, Ll, Lo) that DejaVu Sans has a shape for and that
Unicode does not decompose into others. Every script is wholly in one split (``SCRIPTS``), so the scripts
of val and test are never seen in training.

Look-alikes are then thinned out, within and across splits, so that of any two letters that a person could
not tell apart in a bent 28 x 28 drawing only one stays. Each letter is cropped to its ink and scaled to
fit, as the data set does. Two letters are compared by three scores, each the best over small rotations,
scales and shifts:

``strokes``
    the share of either letter's centre line that runs within 3 of 56 pixels of the other's, the lesser of
    both ways round; measured with and without dots, so that letters differing by dots alone count as
    alike.
``stretched``
    the same within 2 pixels, without dots, after each letter is stretched to a square (unless its sides
    differ by more than a factor of 2, or the two letters' proportions by more than 1.6): finds wide and
    narrow drawings of one shape.
``grey``
    the correlation of the blurred pictures: finds small additions to big shapes.

A pair is alike if any score, or the mean of all three, reaches its limit. The limits were chosen by
looking at the closest pairs that stay. They are stricter (``HELD_OUT``) where a letter of val or test is
concerned, since those decide what a measured accuracy means, than within train (``WITHIN_TRAIN``), where
a few hard pairs (f with and without a bar) do no harm. Capital and small letter of one character are
merged much earlier (``CASES``).

Which of a cluster stays: letters of test come first, then val, then train, because held-out scripts are
scarce and should stay as whole as they can; within a split, the letter with the fewest look-alikes still
in the running comes first, which keeps more letters than going by code point.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn.functional import avg_pool2d, conv2d, grid_sample

from metagrad.data.class_splits import SPLITS
from metagrad.data.glyph_drawing import RECIPE, covered, font_folder, normalised, open_font

OUT = Path(__file__).parents[1] / "src" / "metagrad" / "data" / "splits" / "glyphs.json"

#: First word of a letter's Unicode name -> script and split. Test and val get scripts of differing character:
#: round and slanted Georgian, looped Lao, square Hebrew; Armenian stems, geometric Tifinagh, N'Ko.
SCRIPTS = {
    "LATIN": ("Latin", "train"),
    "GREEK": ("Greek", "train"),
    "CYRILLIC": ("Cyrillic", "train"),
    "COPTIC": ("Coptic", "train"),
    "ARABIC": ("Arabic", "train"),
    "CANADIAN": ("Canadian Aboriginal", "train"),
    "LISU": ("Lisu", "train"),
    "OGHAM": ("Ogham", "train"),
    "OLD": ("Old Italic", "train"),
    "ARMENIAN": ("Armenian", "val"),
    "NKO": ("N'Ko", "val"),
    "TIFINAGH": ("Tifinagh", "val"),
    "GEORGIAN": ("Georgian", "test"),
    "HEBREW": ("Hebrew", "test"),
    "LAO": ("Lao", "test"),
}

#: Letters made of dots alone, where the scores, which ignore dots, cannot judge; left out after looking.
LEFT_OUT = (
    "\u2d57",  # Tifinagh: a column of dots, like U+2D42 with fewer
    "\u141d",  # Canadian Aboriginal: one dot, which fills the whole picture
    "\u1427",  # the same
)


@dataclass(frozen=True)
class Limits:
    """Scores from which on two letters count as alike; ``mean`` is for the mean of the three."""

    strokes: float
    stretched: float
    grey: float
    mean: float


HELD_OUT = Limits(strokes=0.975, stretched=0.92, grey=0.955, mean=0.925)
WITHIN_TRAIN = Limits(strokes=0.98, stretched=0.93, grey=0.96, mean=0.945)
CASES = Limits(strokes=0.93, stretched=0.85, grey=0.90, mean=1.0)

#: How letters are drawn to be compared. Spelt out, so that tuning the drawings leaves the classes as they are.
PLAIN = dataclasses.replace(RECIPE, canvas=56, extent=42, font_size=96)
SIDE = PLAIN.canvas


def candidates() -> list[str]:
    """Return the letters in question, by code point."""
    found = []
    for point in sorted(covered(font_folder())["DejaVuSans"]):
        character = chr(point)
        if (
            unicodedata.category(character) in ("Lu", "Ll", "Lo")
            and not unicodedata.decomposition(character)
            and unicodedata.name(character).split()[0] in SCRIPTS
            and character not in LEFT_OUT
        ):
            found.append(character)
    return found


def script_and_split(character: str) -> tuple[str, str]:
    """Return the script of a candidate and the split it belongs to."""
    return SCRIPTS[unicodedata.name(character).split()[0]]


def fitted(picture: Image.Image, width: int, height: int) -> np.ndarray:
    """Return a picture resized and put in the middle of the canvas."""
    out = np.zeros((SIDE, SIDE), dtype=np.uint8)
    x, y = (SIDE - width) // 2, (SIDE - height) // 2
    out[y : y + height, x : x + width] = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    return out


def without_dots(image: np.ndarray) -> np.ndarray:
    """Return a letter without its dots (small solid round or square parts), scaled to fit again."""
    parts = components(image > 127)
    largest = max((part.sum() for part in parts), default=0)
    dots = [part for part in parts if is_dot(part, largest)]
    if not dots:
        return image
    rest = np.where(np.any([part for part in parts if not is_dot(part, largest)], axis=0), image, 0)
    picture = Image.fromarray(rest.astype(np.uint8))
    picture = picture.crop(picture.getbbox())
    scale = PLAIN.extent / max(picture.size)
    return fitted(picture, *(max(1, round(length * scale)) for length in picture.size))


def is_dot(part: np.ndarray, largest: int) -> bool:
    """Say whether a connected part of a letter is a dot next to a part of ``largest`` pixels."""
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    short, long = sorted((int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1))
    area = part.sum()
    return bool(area < 0.25 * largest and long <= 13 and long <= 1.6 * short + 1 and area >= 0.65 * short * long)


def components(ink: np.ndarray) -> list[np.ndarray]:
    """Return the 8-connected parts of a boolean picture, each as a boolean picture."""
    left, parts = ink.copy(), []
    while left.any():
        part = np.zeros_like(left)
        part.flat[int(left.argmax())] = True
        size = 0
        while part.sum() > size:
            size = int(part.sum())
            padded = np.pad(part, 1)
            for dy, dx in product(range(3), range(3)):
                part |= padded[dy : dy + len(ink), dx : dx + len(ink)]
            part &= left
        parts.append(part)
        left &= ~part
    return parts


def stretched_to_square(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Return a letter stretched to a square unless it is much longer than wide, and its width / height."""
    picture = Image.fromarray(image)
    picture = picture.crop(picture.getbbox())
    ratio = picture.size[0] / picture.size[1]
    size = (PLAIN.extent, PLAIN.extent) if 0.5 <= ratio <= 2.0 else picture.size
    return fitted(picture, *size), ratio


def centre_lines(images: np.ndarray) -> torch.Tensor:
    """Return the letters thinned to lines one pixel wide (Zhang and Suen 1984): ``(N, 1, H, W)``, 0 or 1."""
    ink = np.pad(images > 110, ((0, 0), (1, 1), (1, 1)))
    steps = [(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]
    changed = True
    while changed:
        changed = False
        for first in (True, False):
            near = [ink[:, 1 + dy : SIDE + 1 + dy, 1 + dx : SIDE + 1 + dx] for dy, dx in steps]
            count = sum(part.astype(np.int8) for part in near)
            rises = sum((~near[i] & near[(i + 1) % 8]).astype(np.int8) for i in range(8))
            north, east, south, west = near[::2]
            if first:
                free = ~(north & east & south) & ~(east & south & west)
            else:
                free = ~(north & east & west) & ~(north & south & west)
            drop = ink[:, 1:-1, 1:-1] & (count >= 2) & (count <= 6) & (rises == 1) & free
            ink[:, 1:-1, 1:-1] &= ~drop
            changed = changed or bool(drop.any())
    return torch.from_numpy(ink[:, 1:-1, 1:-1].astype(np.float32)).unsqueeze(1)


def alignments(
    degrees: tuple[float, ...], scales: tuple[float, ...], shifts: tuple[float, ...]
) -> Iterator[torch.Tensor]:
    """Yield sampling grids for each combination of rotation, scale of each axis and shift in pixels."""
    half = SIDE / 2
    centres = (torch.arange(SIDE) + 0.5) / half - 1
    for degree, across, down, dx, dy in product(degrees, scales, scales, shifts, shifts):
        cosine, sine = float(np.cos(np.deg2rad(degree))), float(np.sin(np.deg2rad(degree)))
        x, y = centres.view(1, -1) - dx / half, centres.view(-1, 1) - dy / half
        yield torch.stack([(cosine * x + sine * y) * across, (cosine * y - sine * x) * down], dim=-1)


def moved(pictures: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Return all pictures sampled at one grid."""
    return grid_sample(pictures, grid.expand(len(pictures), -1, -1, -1), align_corners=False)


def shared_strokes(images: np.ndarray, reach: int, grids: Iterator[torch.Tensor]) -> np.ndarray:
    """Return, for each pair, the share of centre line within ``reach`` pixels of the other's: ``(N, N)``."""

    def halved(pictures: torch.Tensor) -> torch.Tensor:
        return avg_pool2d(pictures, 2).flatten(1)

    def shares(lines: torch.Tensor) -> torch.Tensor:
        return lines / lines.sum(1, keepdim=True).clamp(min=1e-6)

    steps = torch.arange(-reach, reach + 1)
    disk = (steps[:, None] ** 2 + steps[None] ** 2 <= reach * reach + 1).float()
    lines = centre_lines(images)
    wide = conv2d(lines, disk[None, None], padding=reach).clamp(max=1)
    lines_a, wide_a = shares(halved(lines)), halved(wide)
    best = torch.zeros(len(images), len(images))
    for grid in grids:
        lines_b, wide_b = shares(halved(moved(lines, grid))), halved(moved(wide, grid))
        torch.maximum(best, torch.minimum(lines_a @ wide_b.T, wide_a @ lines_b.T), out=best)
    return torch.maximum(best, best.T).numpy()


def grey_correlation(images: np.ndarray, grids: Iterator[torch.Tensor]) -> np.ndarray:
    """Return, for each pair, the best correlation of the blurred pictures: ``(N, N)``."""
    line = torch.exp(-0.5 * (torch.arange(-6, 7) / 2.0) ** 2)
    kernel = torch.outer(line, line)[None, None] / line.sum() ** 2

    def features(pictures: torch.Tensor) -> torch.Tensor:
        flat = avg_pool2d(conv2d(pictures, kernel, padding=6), 2).flatten(1)
        flat = flat - flat.mean(1, keepdim=True)
        return flat / flat.norm(dim=1, keepdim=True)

    pictures = torch.from_numpy(images).float().div(255).unsqueeze(1)
    fixed = features(pictures)
    best = torch.full((len(images), len(images)), -1.0)
    for grid in grids:
        torch.maximum(best, fixed @ features(moved(pictures, grid)).T, out=best)
    return torch.maximum(best, best.T).numpy()


def scores(images: np.ndarray) -> dict[str, np.ndarray]:
    """Return the three scores of every pair (see the top of this file) and their mean, each ``(N, N)``."""
    bare = np.stack([without_dots(image) for image in images])
    squares, ratios = zip(*(stretched_to_square(image) for image in bare), strict=True)
    eight, fifth = (-8.0, 0.0, 8.0), (0.85, 1.0, 1.18)
    print("comparing strokes")
    strokes = shared_strokes(images, 3, alignments(eight, fifth, (-3, 0, 3)))
    strokes = np.maximum(strokes, shared_strokes(bare, 3, alignments(eight, fifth, (-3, 0, 3))))
    print("comparing stretched letters")
    turns = (-10.0, -5.0, 0.0, 5.0, 10.0)
    stretched = shared_strokes(np.stack(squares), 2, alignments(turns, (0.88, 1.0, 1.13), (-2, 0, 2)))
    proportions = np.log(ratios)
    stretched[np.abs(proportions[:, None] - proportions[None]) > np.log(1.6)] = 0.0
    print("comparing grey values")
    grey = grey_correlation(images, alignments(eight, fifth, (-4, -2, 0, 2, 4)))
    mean = (strokes + stretched + grey) / 3
    return {"strokes": strokes, "stretched": stretched, "grey": grey, "mean": mean}


def reaches(measured: dict[str, np.ndarray], limits: Limits) -> np.ndarray:
    """Return which pairs reach any of the limits: boolean, ``(N, N)``."""
    over = [measured[name] >= getattr(limits, name) for name in ("strokes", "stretched", "grey", "mean")]
    return np.any(over, axis=0)


def look_alikes(letters: list[str], measured: dict[str, np.ndarray]) -> np.ndarray:
    """Return which pairs of letters count as alike: boolean, ``(N, N)``, False on the diagonal."""
    held_out = np.array([script_and_split(character)[1] != "train" for character in letters])
    position = {character: i for i, character in enumerate(letters)}
    cases = np.zeros((len(letters), len(letters)), dtype=bool)
    for i, character in enumerate(letters):
        for other in {character.lower(), character.upper()} & position.keys():
            cases[i, position[other]] = cases[position[other], i] = True
    concerned = held_out[:, None] | held_out[None]
    alike = np.where(concerned, reaches(measured, HELD_OUT), reaches(measured, WITHIN_TRAIN))
    alike |= cases & reaches(measured, CASES)
    np.fill_diagonal(alike, False)
    return alike


def choose(letters: list[str], alike: np.ndarray) -> list[int]:
    """Return the indices of letters that stay, no two of them alike."""
    splits = np.array([script_and_split(character)[1] for character in letters])
    running = np.ones(len(letters), dtype=bool)
    kept = []
    for split in ("test", "val", "train"):
        while (running & (splits == split)).any():
            here = np.flatnonzero(running & (splits == split))
            fewest = here[int(alike[here][:, running].sum(1).argmin())]
            kept.append(int(fewest))
            running &= ~alike[fewest]
            running[fewest] = False
    return sorted(kept)


def save_montage(path: Path, images: np.ndarray, score: np.ndarray, letters: list[str], pairs: int = 168) -> None:
    """Draw the pairs with the highest scores side by side, for a person to judge the limits by."""
    a, b = np.triu_indices(len(images), 1)
    order = np.argsort(-score[a, b], kind="stable")[:pairs]
    columns = 12
    sheet = Image.new("L", (columns * 130, -(-pairs // columns) * 72), 60)
    draw = ImageDraw.Draw(sheet)
    for place, pair in enumerate(order):
        x, y = place % columns * 130, place // columns * 72
        i, j = int(a[pair]), int(b[pair])
        sheet.paste(Image.fromarray(images[i]), (x + 2, y + 2))
        sheet.paste(Image.fromarray(images[j]), (x + 62, y + 2))
        scripts = f"{script_and_split(letters[i])[0][:5]} {script_and_split(letters[j])[0][:5]}"
        draw.text((x + 2, y + 58), f"{score[i, j]:.3f} {scripts}", fill=255)
    sheet.save(path)


def main() -> None:
    """Write the class lists and say how many classes each script has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--montage", type=Path, help="picture to draw of the closest pairs that stay")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the choice must not hang on the order of additions
    letters = candidates()
    font = open_font(font_folder(), "DejaVuSans", PLAIN)
    images = np.stack([normalised(character, font, PLAIN) for character in letters])
    inked = np.any(images, axis=(1, 2))
    letters, images = [c for c, has in zip(letters, inked.tolist(), strict=True) if has], images[inked]
    measured = scores(images)
    kept = choose(letters, look_alikes(letters, measured))
    listed: dict[str, list[str]] = {split: [] for split in SPLITS}
    for i in kept:
        script, split = script_and_split(letters[i])
        listed[split].append(f"{script}/U+{ord(letters[i]):04X} {unicodedata.name(letters[i])}")
    listed = {split: sorted(names) for split, names in listed.items()}
    OUT.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    for split, names in listed.items():
        print(split, len(names), dict(Counter(name.split("/")[0] for name in names)))
    print(f"{len(kept)} of {len(letters)} letters stay")
    if options.montage is not None:
        staying = [letters[i] for i in kept]
        save_montage(options.montage, images[kept], measured["mean"][np.ix_(kept, kept)], staying)


if __name__ == "__main__":
    main()
