"""Models of the hub: asked for once, and three ways out when they cannot be had."""

import threading
import time

import huggingface_hub
import pytest
from huggingface_hub import errors

from graphhalu.core.errors import ModelUnavailableError
from graphhalu.models import hub
from graphhalu.models.cards import ModelSpec
from graphhalu.models.hub import find_on_hub
from graphhalu.models.load import load_model


@pytest.fixture
def hub_answers(monkeypatch):
    """Let the hub answer with a commit, or with an error."""

    def answer(with_what):
        def metadata(url, timeout):
            if isinstance(with_what, Exception):
                raise with_what
            return with_what

        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    return answer


def error_of(kind):
    """An error of the hub client, without the HTTP response that it wants."""
    return kind.__new__(kind)


def test_the_commit_that_the_hub_names_is_the_revision(hub_answers):
    from types import SimpleNamespace

    hub_answers(SimpleNamespace(commit_hash="abc123"))
    assert find_on_hub("some-lab/tiny", None) == {"revision": "abc123", "local_files_only": False}


def test_a_model_in_the_cache_needs_no_hub(hub_answers, monkeypatch):
    hub_answers(ConnectionError("no route"))
    path = "hub/models--some-lab--tiny/snapshots/abc123/config.json"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: path)
    assert find_on_hub("some-lab/tiny", "v1") == {"revision": "abc123", "local_files_only": True}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (error_of(errors.GatedRepoError), "it is gated"),
        (error_of(errors.RepositoryNotFoundError), "the hub has no such model, or it is private"),
        (error_of(errors.RevisionNotFoundError), "it has no revision 'v7'"),
        (error_of(errors.RemoteEntryNotFoundError), r"it has no config\.json"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        (ConnectionError("no route to\n host"), r"the hub was not reached \(no route to host\)"),
    ],
)
def test_the_reason_is_in_the_error(hub_answers, error, reason):
    hub_answers(error)
    with pytest.raises(ModelUnavailableError, match=f"some-lab/tiny cannot be had: {reason}"):
        find_on_hub("some-lab/tiny", "v7")


def test_a_name_that_the_hub_cannot_have_is_said_to_be_none():
    with pytest.raises(ModelUnavailableError, match="that is not a valid name on the hub"):
        find_on_hub("some lab/tiny model", None)


def test_a_gated_model_shows_three_ways_out(monkeypatch, hub_answers):
    hub_answers(error_of(errors.GatedRepoError))
    with pytest.raises(ModelUnavailableError) as caught:
        load_model(ModelSpec(name="llama2-7b"))
    text = str(caught.value)
    assert "hf auth login" in text
    assert "accept its licence at https://huggingface.co/meta-llama/Llama-2-7b-chat-hf" in text
    assert "HF_HOME" in text
    assert "--model FOLDER" in text


def test_an_open_model_asks_for_no_licence(hub_answers):
    hub_answers(ConnectionError("no route"))
    with pytest.raises(ModelUnavailableError) as caught:
        load_model(ModelSpec(name="qwen2.5-0.5b"))
    assert "licence" not in str(caught.value)


def test_a_hub_that_never_answers_is_given_up(hub_answers, monkeypatch):
    is_over = threading.Event()
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: is_over.wait(60))
    monkeypatch.setattr(hub, "ANSWER_S", 0.1)
    started = time.monotonic()
    with pytest.raises(ModelUnavailableError, match=r"no answer within 0\.1 s"):
        find_on_hub("some-lab/tiny", None)
    assert time.monotonic() - started < 30
    is_over.set()
