from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medseg.errors import ModelError, ResourceError
from medseg.progress import Silent
from medseg.training.ranks import run_ranks


def fails(rank, port, progress):
    if rank == 1:
        raise ModelError.of("rank 1 is unhappy")
    return "fine"


def dies(rank, port, progress):
    if rank == 1:
        os._exit(3)
    return "fine"


def works(rank, port, progress):
    progress.say(f"rank {rank}")
    return rank, port


class Heard(Silent):
    def __init__(self):
        self.lines = []

    def say(self, message):
        self.lines.append(message)


def test_result_of_rank_zero_and_what_all_say():
    progress = Heard()
    rank, port = run_ranks(works, 2, progress)
    assert rank == 0
    assert port > 0
    assert sorted(progress.lines) == ["rank 0", "rank 1"]


def test_an_error_in_a_rank_reaches_the_caller():
    with pytest.raises(ModelError, match="rank 1 is unhappy"):
        run_ranks(fails, 2, Silent())


def test_a_rank_that_is_killed():
    with pytest.raises(ResourceError, match="rank 1: a training process was killed; found exit code 3"):
        run_ranks(dies, 2, Silent())


def waits(rank, port, progress):
    Path(os.environ["RANK_FILES"], str(os.getpid())).touch()
    time.sleep(60)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ranks_end_when_their_parent_is_killed(tmp_path):
    parent = subprocess.Popen([sys.executable, __file__], env={**os.environ, "RANK_FILES": str(tmp_path)})
    end = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 10
    while any(alive(int(p.name)) for p in tmp_path.iterdir()):
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    run_ranks(waits, 2, Silent())
