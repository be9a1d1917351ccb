"""A token detector for use: fitted on all answers but those that choose its threshold."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from graphhalu.detectors.base import Detector
from graphhalu.detectors.identity import Identity
from graphhalu.detectors.registry import DETECTORS
from graphhalu.detectors.saved import save_detector
from graphhalu.evaluation.splits import cross_fit_folds
from graphhalu.evaluation.token_crossfit import scored
from graphhalu.evaluation.token_run import TokenCompareConfig
from graphhalu.evaluation.token_spans import best_threshold, marked_answer
from graphhalu.labels.groups import question_groups
from graphhalu.labels.tokens import label_tokens
from graphhalu.splits import Split
from graphhalu.traces.trace import Trace


def train_token_detector(
    name: str, traces: Sequence[Trace], config: TokenCompareConfig, folder: Path
) -> Detector:
    """Fit a detector on four fifths of the contexts, choose its threshold on the rest, save it.

    Nothing is left to test it on; what it is worth says a comparison. The threshold, which makes
    the F1 of characters highest, stands in ``detector.json`` under ``training``.

    Args:
        name: Registered name.
        traces: Given answers with marked spans; a store, so that the detector knows its model.
        config: Settings of the detector, number of folds, and seed (the first one).
        folder: Where it is saved; is made if it is missing.

    Raises:
        NotEnoughDataError: If a class is missing.
    """
    seed = config.seeds[0]
    labels = label_tokens([trace.record for trace in traces])
    groups = question_groups(traces)
    fold = cross_fit_folds(
        labels.values, groups, labels.is_valid, n_folds=config.n_folds, seed=seed
    )[0]
    train, held_out = np.concatenate([fold.train, fold.test]), fold.validation.tolist()
    split = Split(np.sort(train), fold.validation, np.zeros(0, dtype=np.int64), groups)
    kind = DETECTORS.get(name)
    detector = kind(**kind.settings(**config.settings.get(name, {}), seed=seed))
    detector.fit(traces, labels, split)
    scores = scored(detector, traces, held_out)
    threshold = best_threshold(scores, [marked_answer(traces[at].record) for at in held_out])
    detector.training_report["threshold"] = threshold
    save_detector(detector, folder, Identity.of_traces(traces))
    return detector
