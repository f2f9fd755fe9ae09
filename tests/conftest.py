"""Tests run in as many processes as there are cores: each, and what it starts, keeps to one thread."""

import os

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
