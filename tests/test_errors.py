from __future__ import annotations

import pickle

import pytest
from torch._utils import ExceptionWrapper

from medseg.errors import DatasetError, MedsegError, Problem


def test_a_text_is_one_problem():
    error = DatasetError("all is lost.")
    assert error.problems == (Problem("all is lost"),)
    assert str(error) == "all is lost."


def test_torch_can_raise_the_error_of_a_worker_again():
    try:
        raise DatasetError.of("is damaged", where="case 7")
    except DatasetError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(DatasetError) as caught:
        wrapped.reraise()
    (problem,) = caught.value.problems
    assert problem.what.startswith("Caught DatasetError in DataLoader worker process 0.")
    assert problem.what.endswith("case 7: is damaged")


def test_errors_travel_between_processes():
    error = MedsegError([Problem("one", where="here", fix="Mend it."), Problem("two")])
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), back.problems, str(back)) == (MedsegError, error.problems, str(error))
