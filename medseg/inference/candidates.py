"""Several ensembles of the same members predict the same cases: each member once per case, however many ensembles it is in."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

from numpy.typing import NDArray

from medseg.dataset import CaseFiles
from medseg.inference.checks import check_voxels
from medseg.inference.ledger import Ledger, PredictedCase
from medseg.inference.member import stages_first
from medseg.inference.output import LABEL_MAPS, Output
from medseg.inference.predictor import Predictor
from medseg.record import check_writable
from medseg.workspace import Members


@final
class Candidates:
    """A folder of predictions for each candidate, as `Predictor.predict` would write it: also a call that was interrupted is continued."""

    def __init__(self, folders: Mapping[Members, Path], cases: Sequence[CaseFiles], formats: Sequence[str] = LABEL_MAPS) -> None:
        """The folders of all candidates; they are claimed within the `with` block.

        Args:
            folders: of each candidate, all different.
            cases: all cases that will be predicted.
            formats: names of exports.

        Raises:
            UsageError: another call is writing there, or files that medseg did not write are in the way.
            ResourceError: the folder cannot be written.
        """
        self._cases = cases
        self._folders = folders
        self._formats = formats
        self._ledgers: dict[Members, Ledger] = {}

    def __enter__(self) -> Self:
        try:
            for candidate, folder in self._folders.items():
                ledger = Ledger(folder)
                targets = Output(folder, self._formats).check(self._cases, ledger.files())
                check_writable(folder)
                ledger.claim(targets)
                self._ledgers[candidate] = ledger
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        for ledger in self._ledgers.values():
            ledger.close()

    def predict(self, members: Mapping[str, Predictor], files: CaseFiles) -> dict[Members, PredictedCase]:
        """Predict one case by every candidate, or find that it has been done.

        `seconds` is what the candidate alone would have taken: reading, all its members, combining, writing.

        Args:
            members: the models, none of them an ensemble, as they predict before anything was learned of held-out predictions.
        """
        joined = {c: members[c[0]].joined([members[name] for name in c[1:]]) for c in self._folders}
        sources = {c: one.source(files, probabilities=False, uncertainty=False, mirror=True) for c, one in joined.items()}
        known = {c: ledger.finished(files.id, sources[c]) for c, ledger in self._ledgers.items()}
        finished = {c: entry for c, entry in known.items() if entry is not None}
        if len(finished) == len(known):
            return finished
        smallest = min((one.scratch for one in joined.values()), key=lambda scratch: scratch.limit)  # all members' arrays exist at once
        start = time.monotonic()
        case = next(iter(members.values())).read(files)
        check_voxels(case)
        reading = time.monotonic() - start
        alone, seconds = {}, {}
        maps: dict[str, NDArray[Any]] = {}
        names = list(members)
        for place in stages_first(list(members.values())):
            start = time.monotonic()
            alone[names[place]] = members[names[place]].alone(case, True, True, smallest, known=maps)
            seconds[names[place]] = time.monotonic() - start
        # A cascade whose earlier stage is a member here did not predict by it again; alone it would have.
        stages = {
            name: {other for other in names if (one := members[name].previous) and one.weights == members[other].weights} for name in names
        }
        done = {}
        for candidate, one in joined.items():
            start = time.monotonic() - reading - sum(seconds[name] for name in {*candidate}.union(*(stages[name] for name in candidate)))
            prediction = one.together([alone[name] for name in candidate], case)
            done[candidate] = one.write(
                prediction, files, case.grid, Output(self._folders[candidate], self._formats), sources[candidate], start
            )
            self._ledgers[candidate].add(done[candidate])
        return done
