from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from graphhalu.core.errors import DataFileError, NotEnoughDataError
from graphhalu.detectors.probes import ShuffledLabels, shuffled_by_group
from graphhalu.detectors.saved import load_detector
from graphhalu.detectors.text import TextConfig, Tfidf
from graphhalu.traces.trace import Trace


def with_texts(traces, texts, field="answer"):
    return [
        Trace(replace(trace.record, **{field: text}), trace.shape, trace.arrays)
        for trace, text in zip(traces, texts, strict=True)
    ]


@pytest.fixture(scope="module")
def about_words(few):
    """The question tells hallucinated answers, the answer says nothing."""
    words = [f"who won {'gold' if label else 'silver'}?" for label in few.labels.values]
    return with_texts(few.traces, words, "question")


def test_the_question_is_read_only_when_asked_for(about_words, few):
    found = {}
    for text in ("answer", "question+answer"):
        detector = Tfidf(config=TextConfig(text=text))
        detector.fit(about_words, few.labels, few.split)
        scores = detector.score([about_words[index] for index in few.split.test]).values
        found[text] = roc_auc_score(few.test_labels, scores)
    assert found["question+answer"] == 1
    assert abs(found["answer"] - 0.5) < 0.3


def test_words_of_the_test_side_are_not_in_the_vocabulary(few):
    texts = ["plain words here"] * len(few.traces)
    for index in few.split.test:
        texts[index] = "unheard"
    detector = Tfidf().fit(with_texts(few.traces, texts), few.labels, few.split)
    assert "plain" in detector.vectorisers["word"].vocabulary_
    assert "unheard" not in detector.vectorisers["word"].vocabulary_


def test_an_empty_answer_has_no_score(few, fitted_on_few):
    empty = with_texts([few.traces[0]], ["  "])
    assert not fitted_on_few["tfidf"].score(empty).is_valid.any()


def test_answers_without_a_common_term_are_not_enough(few):
    texts = [chr(0x4E00 + place) for place in range(len(few.traces))]
    with pytest.raises(NotEnoughDataError, match="no term"):
        Tfidf().fit(with_texts(few.traces, texts), few.labels, few.split)


def test_a_vocabulary_that_does_not_fit_its_weights_is_refused(few, fitted_on_few, tmp_path):
    fitted_on_few["tfidf"].save(tmp_path)
    path = tmp_path / "detector.json"
    path.write_text(path.read_text().replace('"word": [', '"word": ["one more",'))
    with pytest.raises(DataFileError):
        load_detector(tmp_path)


def test_shuffling_keeps_labels_of_a_question_together():
    groups = np.repeat([f"q{place}" for place in range(50)], 3)
    labels = np.repeat(np.arange(50) % 2, 3)
    shuffled = shuffled_by_group(labels, groups, seed=1)
    assert shuffled.sum() == labels.sum()
    assert (shuffled != labels).any()
    for group in np.unique(groups):
        assert len(set(shuffled[groups == group])) == 1


def test_a_probe_of_shuffled_labels_finds_nothing_where_there_is_much(with_signal):
    data = with_signal
    detector = ShuffledLabels().fit(data.traces, data.labels, data.split)
    found = roc_auc_score(data.test_labels, detector.score(data.test_traces).values)
    assert abs(found - 0.5) < 0.2
