#!/usr/bin/env bash
# What to run on a machine with a GPU that is yours for ten minutes. It needs python3 with torch and numpy, this source
# tree, and packed/omniglot.npz (made elsewhere: python benchmarks/pack_omniglot.py --data-dir DIR).
#
#     OUT=results-here benchmarks/gpu.sh                        # all parts, 570 seconds together
#     benchmarks/gpu.sh --parts train --resume OLD/train.pt     # training alone, going on from OLD/train.pt
#     benchmarks/gpu.sh --device cpu --tiny                     # everything, small, without a GPU
#
# Every part writes what it has found to $OUT at once: stopping at any time loses at most 20 seconds of training.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="src:benchmarks${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" benchmarks/gpu.py --out "${OUT:-gpu-out}" --data packed/omniglot.npz --seconds 570 "$@"
