"""What was learned of held-out predictions, applied to label maps that are written already."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from medseg.dataset import CaseFiles
from medseg.inference.ledger import Ledger
from medseg.inference.output import Output
from medseg.inference.predictor import Predictor
from medseg.io.images import read_prediction
from medseg.prediction import Prediction


def finish_written(predictor: Predictor, cases: Sequence[CaseFiles], out: Path) -> None:
    """Finish (`Task.finish`) the label maps in `out` that this model wrote before it learned how; no network runs.

    The outcome is what `Predictor.predict` would write anew, and is known to it as finished. Other files are left as they are.

    Raises:
        UsageError: another call is writing there.
    """
    before = predictor.raw()
    if before.key == predictor.key:
        return
    ledger = Ledger(out)
    ledger.claim(())
    try:
        for files in cases:
            entry = ledger.finished(files.id, before.source(files, probabilities=False, uncertainty=False, mirror=True))
            if entry is None:
                continue
            start = time.monotonic() - entry.seconds
            image = read_prediction(out / entry.file, predictor.plan.data.labels)
            labels = predictor.task.finish(image.array[0], image.grid.spacing)
            source = predictor.source(files, probabilities=False, uncertainty=False, mirror=True)
            ledger.add(predictor.write(Prediction(files.id, labels), files, image.grid, Output(out), source, start))
    finally:
        ledger.close()
