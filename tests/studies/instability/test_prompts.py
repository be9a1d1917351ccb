"""Files of prompts: lines, rows, classes, and one clear text for each mistake."""

import json

import pytest

from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.studies.instability.series import prompt_group, read_prompts, read_texts


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_a_text_file_has_one_prompt_a_line(tmp_path):
    path = written(tmp_path, "a.txt", "\ufeffSay it.\r\n\r\n  [now] say it  \n{x}\n")
    found = read_prompts(path, 1)
    assert [prompt.text for prompt in found] == ["Say it.", "[now] say it", "{x}"]
    assert [prompt.prompt_id for prompt in found] == ["attack-0001", "attack-0002", "attack-0003"]
    assert {prompt.label for prompt in found} == {1}


def test_rows_bring_their_own_class(tmp_path):
    rows = [{"prompt": "a\nb", "label": 1}, {"text": "c", "label": "benign"}]
    path = written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    found = read_prompts(path, None)
    assert [(prompt.text, prompt.label) for prompt in found] == [("a\nb", 1), ("c", 0)]
    assert [prompt.prompt_id for prompt in found] == ["attack-0001", "benign-0001"]


def test_a_named_class_wins_over_the_column(tmp_path):
    path = written(tmp_path, "a.csv", "text,label\nsay it,0\n")
    assert read_prompts(path, 1)[0].label == 1


def test_prompts_that_say_the_same_are_one_group():
    assert prompt_group("Say: the TEST!") == prompt_group("say test")
    assert prompt_group("Say test") != prompt_group("Say text")


def test_deepsets_test_file_is_read_whole(shared_data):
    found = read_prompts(shared_data / "prompt_injection" / "deepset" / "test.csv", None)
    assert len(found) == 116
    assert sum(prompt.label for prompt in found) == 60


@pytest.mark.parametrize(
    ("name", "text", "label", "error", "words"),
    [
        ("none.txt", None, 1, UsageError, "no file of prompts"),
        ("a.txt", "", 1, UsageError, "holds no prompt"),
        ("a.txt", " \n\n", 1, UsageError, "holds no prompt"),
        ("a.jsonl", "", 1, UsageError, "holds no prompt"),
        ("a.csv", "text,label\n", None, UsageError, "holds no prompt"),
        ("a.txt", "say it", None, UsageError, "--attacks and --benign"),
        ("a.csv", "words,label\nx,1\n", None, DataFileError, "a column 'prompt' or 'text'"),
        ("a.csv", "text,label\nx,maybe\n", None, DataFileError, "label must be 1"),
        ("a.csv", "text,kind\nx,1\n", None, DataFileError, "label"),
        ("a.jsonl", '{"text": ""}', 1, DataFileError, "text"),
    ],
)
def test_mistakes_are_named(tmp_path, name, text, label, error, words):
    path = tmp_path / name if text is None else written(tmp_path, name, text)
    with pytest.raises(error, match=words):
        read_prompts(path, label)


def test_texts_alone_need_no_class(tmp_path):
    assert read_texts(written(tmp_path, "a.csv", "prompt\nsay it\nor not\n")) == ["say it", "or not"]
