"""Memory of large tensors that a process keeps for the next ones."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
import metagrad

if sys.argv[1] == "keep":
    print(metagrad.keep_memory())
for _ in range(12):
    torch.empty(12 * 2**20).fill_(1.0)  # 48 MB: glibc's own limit is 32
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.empty(12 * 2**20).fill_(1.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_large_tensors_are_not_fetched_from_the_kernel_again():
    def said(how):
        return subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout

    taken, kept = said("keep").split()
    if taken == "False":
        pytest.skip("another C library")
    assert int(kept) < 200
    assert int(said("as it is")) > max(200, 20 * int(kept)), "or the setting does nothing that the default does not"


def test_where_there_is_no_such_setting_nothing_happens(monkeypatch):
    from metagrad import allocator

    monkeypatch.setattr(sys, "platform", "darwin")
    assert allocator.keep_memory() is False
