"""What predictions are worth: scores per case and class, means with intervals, a page to look at, and paired comparisons."""

from medseg.evaluation.comparison import compare
from medseg.evaluation.records import Comparison, Difference, Evaluation, Summary
from medseg.evaluation.scoring import evaluate

__all__ = ["Comparison", "Difference", "Evaluation", "Summary", "compare", "evaluate"]
