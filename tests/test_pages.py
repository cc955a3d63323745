from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from medseg import pages

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
    plain = {key: text for key, text in os.environ.items() if not key.startswith("MALLOC_") and key != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60, env=plain)
    usual, kept, still, again, returned = map(float, done.stdout.split())
    assert usual > 10  # 40 MiB are so many huge pages, and far more small ones
    assert max(kept, still) < usual / 10
    assert returned > 30  # MiB
    assert again > kept


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' allocators are left as they are")
@pytest.mark.parametrize(
    ("name", "value", "left"),
    [
        ("MALLOC_ARENA_MAX", "2", True),
        ("MALLOC_TRIM_THRESHOLD_", "131072", True),
        ("GLIBC_TUNABLES", "glibc.rtld.nns=4:glibc.malloc.mmap_max=100", True),
        ("GLIBC_TUNABLES", "glibc.rtld.nns=4", False),
    ],
)
def test_what_the_environment_says_of_allocation_is_left_as_it_is(name: str, value: str, left: bool) -> None:
    script = """
from medseg import pages
called = []
class Library:
    def mallopt(self, *given): called.append(given)
    def malloc_trim(self, *given): called.append(given)
pages.ctypes.CDLL = lambda name: Library()
with pages.kept_pages():
    pass
pages.given_back()
print(len(called))
"""
    plain = {key: text for key, text in os.environ.items() if not key.startswith("MALLOC_") and key != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60, env={**plain, name: value}
    )
    assert int(done.stdout) == (0 if left else 6)


def test_threads_share_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins with the first of them and ends with the last."""
    changes: list[int] = []

    class Library:
        def mallopt(self, name: int, value: int) -> None:
            time.sleep(1e-4)  # others get their turn
            if name == pages.MMAP_MAX:
                changes.append(value)

        def malloc_trim(self, pad: int) -> None:
            assert changes[-1] == pages.MAPPINGS

    monkeypatch.setattr(pages, "_glibc", lambda: Library())

    def work() -> None:
        for _ in range(20):
            with pages.kept_pages():
                assert changes[-1] == 0
            pages.given_back()

    failed: list[BaseException] = []

    def watched() -> None:
        try:
            work()
        except AssertionError as error:
            failed.append(error)

    threads = [threading.Thread(target=watched) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert changes == [0, pages.MAPPINGS] * (len(changes) // 2)


def test_what_goes_wrong_within_it_comes_out() -> None:
    script = "from medseg.pages import kept_pages\nwith kept_pages():\n    raise SystemExit(7)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 7
