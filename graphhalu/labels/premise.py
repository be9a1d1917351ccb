"""The rule ``premise``: what the data set says of the question itself."""

from typing import Any, ClassVar

from graphhalu.labels.base import LabelDecision, Labeller, correct, hallucinated, undecided
from graphhalu.labels.labels import Meaning
from graphhalu.traces.schema import TraceRecord


class PremiseLabel(Labeller):
    """Takes over whether a question misleads, as one with a false premise does.

    The label speaks of the input: a model may well answer such a question rightly.
    """

    name: ClassVar[str] = "premise"
    meaning: ClassVar[Meaning] = "input"

    def settings(self) -> dict[str, Any]:
        """The rule has no choices."""
        return {"rule": "label of the question", "version": 1}

    def label(self, record: TraceRecord) -> LabelDecision:
        """Decide one question; see the class."""
        if record.input_label is None:
            return undecided("the data set does not say")
        misleads = bool(record.input_label)
        return hallucinated("question misleads") if misleads else correct("question is sound")
