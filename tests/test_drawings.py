"""Glyphs and Omniglot as one data set: both splits kept, no script on both sides."""

from pathlib import Path

import torch

from metagrad import data
from metagrad.classifier.learner import Learner
from metagrad.data import Dataset, ImageClasses, drawings, glyphs, omniglot
from metagrad.data.class_splits import SPLITS, published_split
from metagrad.fewshot import EpisodeSampler


def small(name, split, seed=0):
    """Return one drawing and another of each class of a published split, 4×4."""
    g = torch.Generator().manual_seed(seed)

    def part(names):
        images = torch.randint(0, 256, (2 * len(names), 1, 4, 4), generator=g).to(torch.uint8)
        return ImageClasses(images, torch.full((len(names),), 2), tuple(names))

    return Dataset(name, *(part(split[which]) for which in SPLITS), name == "omniglot", f"{name}'s way", f"{seed}")


def both(seed=0):
    parts = [small(name, published_split(name), seed) for name in ("glyphs", "omniglot")]
    return parts, drawings.union(*parts)


def test_each_keeps_its_split_and_its_images():
    parts, found = both()
    assert [len(getattr(found, which).names) for which in SPLITS] == [1339, 283, 583]
    for which in SPLITS:
        classes = getattr(found, which)
        for part in parts:
            own = getattr(part, which)
            names = [name for name in classes.names if name.startswith(f"{part.name}/")]
            assert {name.removeprefix(f"{part.name}/") for name in names} <= set(own.names)
            if which != "train":
                assert len(names) == len(own.names)
            for name in names[:: max(1, len(names) // 20)]:
                here, there = classes.names.index(name), own.names.index(name.removeprefix(f"{part.name}/"))
                assert torch.equal(
                    classes.images[classes.first[here] : classes.first[here] + 2],
                    own.images[own.first[there] : own.first[there] + 2],
                )
    assert found.rotations
    assert found.preprocessing == "glyphs: glyphs's way; omniglot: omniglot's way"


# What each calls a script, where the two call it by other names.
SAME = {
    "Asomtavruli_(Georgian)": "Georgian", "Mkhedruli_(Georgian)": "Georgian", "N_Ko": "N'Ko",
    "Old_Church_Slavonic_(Cyrillic)": "Cyrillic", "Malay_(Jawi_-_Arabic)": "Arabic",
    "Blackfoot_(Canadian_Aboriginal_Syllabics)": "Canadian Aboriginal",
    "Inuktitut_(Canadian_Aboriginal_Syllabics)": "Canadian Aboriginal",
    "Ojibwe_(Canadian_Aboriginal_Syllabics)": "Canadian Aboriginal",
}  # fmt: skip


def scripts(classes, name):
    place = 1 if name == "glyphs" else 2
    own = {label.split("/")[place] for label in classes.names if label.startswith(f"{name}/")}
    return {SAME.get(script, script) for script in own}


def test_what_one_holds_out_is_not_learned_from_the_other():
    _, found = both()
    for name, other in (("glyphs", "omniglot"), ("omniglot", "glyphs")):
        learned = scripts(found.train, name)
        assert len(learned) >= 8
        for held_out in (found.val, found.test):
            assert not learned & scripts(held_out, other)
    assert "Hebrew" in scripts(found.test, "glyphs")
    assert "Hebrew" in scripts(found.val, "omniglot")


def test_the_digest_follows_both():
    assert both(0)[1].digest == both(0)[1].digest != both(1)[1].digest


def test_it_is_loaded_by_its_name(monkeypatch):
    asked = []
    parts, expected = both()
    monkeypatch.setattr(glyphs, "load", lambda **options: asked.append(options) or parts[0])
    monkeypatch.setattr(omniglot, "load", lambda **options: asked.append(options) or parts[1])
    found = data.load("drawings", data_dir="somewhere", anew=True)
    assert found.digest == expected.digest
    assert str(asked[1]["data_dir"]) == "somewhere"
    assert asked[1]["anew"] is True


def test_the_model_that_comes_along_tells_letters_of_unseen_scripts_apart():
    learner, letters = Learner.of(Path("glyphs")), glyphs.load().test
    assert learner.experiment.tasks.dataset == "drawings"
    source = EpisodeSampler(classes=letters, ways=5, shots=1, queries=5)
    drawn = source(40, generator=torch.Generator().manual_seed(0))
    networks = learner.solved(drawn.support.x, drawn.support.y, 5)
    with torch.inference_mode():  # each image by itself: the networks have no batch statistics
        scores = torch.stack([network(x) for (network, _), x in zip(networks, drawn.query.x, strict=True)])
    assert (scores.argmax(-1) == drawn.query.y).float().mean() > 0.93
