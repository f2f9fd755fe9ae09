"""Whether probabilities and --reject hold where classes and pictures of each are not as many as in training.

    python benchmarks/calibrated.py glyphs                          # the model that comes along
    python benchmarks/calibrated.py glyphs --handwriting data       # on Omniglot's drawings, read from their files
    python benchmarks/calibrated.py runs/imaml --data-dir data

Test classes, each image by itself, 600 images of known classes a size or more. Shown for each size: accuracy, and the
one said to be expected; expected calibration error, images of known classes that --reject loses, images of other
classes that it finds; each as it would be with what was measured at the run's own size, and as it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from handwriting import as_read
from metagrad import data
from metagrad.classifier.calibrate import Outcomes, ece, outcomes_of
from metagrad.classifier.learner import Learner
from metagrad.errors import MetagradError

_SIZES = ((5, 1), (5, 2), (3, 5), (10, 1), (10, 3), (20, 1), (20, 3), (40, 2), (5, 10))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory, or glyphs")
    parser.add_argument("--data-dir", type=Path, help="where the data lie (as for metagrad train)")
    parser.add_argument("--handwriting", type=Path, help="folder of Omniglot's archives: judge on its test characters")
    options = parser.parse_args()
    learner = Learner.of(options.run)
    if learner.calibration is None:
        raise MetagradError(f"{options.run} was not calibrated: metagrad train --resume it")
    if options.handwriting:
        classes = as_read(
            data.load("omniglot", data_dir=options.handwriting).test, options.handwriting, learner.reading
        )
    else:
        classes = data.load(learner.facts["dataset"], data_dir=options.data_dir).test
    print("size     right  said   error, own size  here   known lost, own size  here   others found, own size  here")
    for ways, shots in _SIZES:
        seen = Outcomes()
        tasks = max(12, -(-600 // (ways * learner.episodes.queries)))
        for _ in outcomes_of(learner, classes, seen, ways=ways, shots=shots, tasks=tasks, seed=1):
            pass
        scores, y, near, far = (torch.cat(part) for part in (seen.known, seen.labels, seen.near, seen.far))
        here, own = learner.calibration.at(ways, shots), learner.calibration.own
        off = [100 * ece((scores / size.temperature).softmax(-1), y) for size in (own, here)]
        lost, found = ([_percent(part > size.ood_threshold) for size in (own, here)] for part in (near, far))
        print(
            f"{ways:2}-way {shots:2} {_percent(scores.argmax(-1) == y):6.1f} {100 * here.accuracy:5.1f} {off[0]:16.1f} "
            f"{off[1]:5.1f} {lost[0]:21.1f} {lost[1]:5.1f} {found[0]:23.1f} {found[1]:5.1f}"
        )


def _percent(hits: Tensor) -> float:
    return 100 * float(hits.float().mean())


if __name__ == "__main__":
    main()
