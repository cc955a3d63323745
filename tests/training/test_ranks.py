from __future__ import annotations

import os

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
