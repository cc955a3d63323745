from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import psutil, resource, torch
from medseg.pages import given_back, kept_pages
torch.set_num_threads(1)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    before = faults()
    for size in (3, 40, 7):
        torch.ones(size, 2**20, dtype=torch.uint8)
    return faults() - before
def held():
    return psutil.Process().memory_info().rss / 2**20
usual = min(step() for _ in range(3))
with kept_pages():
    step()
    kept = min(step() for _ in range(3))
    with kept_pages():  # one within another does not end it
        step()
    given_back()  # nor does this
    inside = held()
    still = min(step() for _ in range(3))
given_back()
outside = held()
again = min(step() for _ in range(3))
print(usual, kept, still, again, inside - outside)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' allocators are left as they are")
def test_freed_memory_stays_within_the_context_and_is_given_back_at_its_end() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    usual, kept, still, again, returned = map(float, done.stdout.split())
    assert usual > 10  # 40 MiB are so many huge pages, and far more small ones
    assert max(kept, still) < usual / 10
    assert returned > 30  # MiB
    assert again > kept


def test_what_goes_wrong_within_it_comes_out() -> None:
    script = "from medseg.pages import kept_pages\nwith kept_pages():\n    raise SystemExit(7)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 7
