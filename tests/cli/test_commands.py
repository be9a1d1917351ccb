"""Commands and options of version 0.1 keep working."""

import json
from pathlib import Path

import pytest
from typer import Context
from typer.main import get_command

from graphhalu.cli.main import app

STORED = json.loads((Path(__file__).parent / "commands_of_0_1.json").read_text(encoding="utf-8"))


def _options(command):
    names = set()
    for parameter in command.get_params(Context(command)):
        if parameter.param_type_name == "argument":
            names.add(f"<{parameter.name}>")
        else:
            names.update((*parameter.opts, *parameter.secondary_opts))
    return names


def _find(words):
    command = get_command(app)
    for word in words.split():
        command = command.commands[word]
    return command


def test_the_stored_list_is_whole():
    assert len(STORED) > 20
    assert "--model" in STORED["extract"]


@pytest.mark.parametrize("words", STORED)
def test_a_command_of_0_1_has_its_arguments_and_options(words):
    assert set(STORED[words]) <= _options(_find(words))
