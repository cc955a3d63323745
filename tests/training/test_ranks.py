from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medseg.errors import ModelError, ResourceError
from medseg.progress import Silent
from medseg.training.ranks import run_ranks


def fails(rank, port, progress, stop):
    if rank == 1:
        raise ModelError.of("rank 1 is unhappy")
    return "fine"


def dies(rank, port, progress, stop):
    if rank == 1:
        os._exit(3)
    return "fine"


def works(rank, port, progress, stop):
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


def waits(rank, port, progress, stop):
    Path(os.environ["RANK_FILES"], str(os.getpid())).touch()
    time.sleep(60)


def listens(rank, port, progress, stop):
    """Ends when it is told to, and says by what."""
    stop.install()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        return "not deaf to Ctrl-C"
    Path(os.environ["RANK_FILES"], str(os.getpid())).touch()
    end = time.monotonic() + 60
    while not stop.name and time.monotonic() < end:
        time.sleep(0.02)
    return stop.name


def ranks_of(tmp_path, work):
    parent = subprocess.Popen(
        [sys.executable, __file__, work],
        env={**os.environ, "RANK_FILES": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2:
        assert time.monotonic() < end
        assert parent.poll() is None, parent.stderr.read()
        time.sleep(0.05)
    return parent


@pytest.mark.skipif(sys.platform == "win32", reason="process groups of POSIX")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_to_the_whole_group_stops_the_ranks_once(tmp_path, name):
    """Ctrl-C in a terminal, and SLURM's SIGTERM, reach parent and children alike."""
    parent = ranks_of(tmp_path, "listens")
    os.killpg(parent.pid, getattr(signal, name))
    out, error = parent.communicate(timeout=30)
    assert (parent.returncode, out.strip(), error) == (0, name, "")


@pytest.mark.skipif(sys.platform == "win32", reason="process groups of POSIX")
def test_a_second_interrupt_ends_ranks_that_do_not_listen(tmp_path):
    parent = ranks_of(tmp_path, "waits")
    os.killpg(parent.pid, signal.SIGINT)
    time.sleep(0.5)
    assert parent.poll() is None
    os.killpg(parent.pid, signal.SIGINT)
    _, error = parent.communicate(timeout=30)
    assert parent.returncode != 0
    assert error.strip().endswith("KeyboardInterrupt")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ranks_end_when_their_parent_is_killed(tmp_path):
    parent = ranks_of(tmp_path, "waits")
    parent.kill()
    parent.wait()
    parent.stdout.close()
    parent.stderr.close()
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
    print(run_ranks({"waits": waits, "listens": listens}[sys.argv[1]], 2, Silent()))
