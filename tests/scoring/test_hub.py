"""Pushing and pulling through the real client, against a server on loopback that speaks the hub's API."""

import base64
import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

import pytest

from graphhalu.cli.main import run
from graphhalu.core.errors import CorruptStoreError, GraphhaluError, UsageError


class Hub(ThreadingHTTPServer):
    """Repositories in memory; each commit is a whole tree."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.trees, self.private = {}, {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = b""
            while size := int(self.rfile.readline(), 16):
                parts += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return parts
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        path, body = unquote(urlparse(self.path).path), self.body()
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            kind = asked.get("type", "model")
            self.server.private[kind, name] = bool(
                asked.get("private") or asked.get("visibility") == "private"
            )
            if (kind, name) in self.server.trees:
                return self.answer(409, {"error": "there", "url": name})
            self.server.trees[kind, name] = [("0" * 40, {})]
            return self.answer(200, {"url": f"{self.server.url}/{name}"})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        _, _, kind, owner, name, step, *_ = path.split("/")
        key = (kind.removesuffix("s"), f"{owner}/{name}")
        if step == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files, "commitOid": self.server.trees[key][-1][0]})
        tree = dict(self.server.trees[key][-1][1])
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                tree[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
        commit = hashlib.sha1(body).hexdigest()
        self.server.trees[key].append((commit, tree))
        url = f"{self.server.url}/{owner}/{name}/commit/{commit}"
        return self.answer(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlparse(self.path).path)
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            key = (parts[1].removesuffix("s"), f"{parts[2]}/{parts[3]}")
            if "tree" in parts:
                return self.tree(key, parts[5])
            return self.info(key, parts[5] if len(parts) > 5 else None)
        kind = "dataset" if parts[0] == "datasets" else "model"
        parts = parts[1:] if kind == "dataset" else parts
        key, commit, name = (kind, f"{parts[0]}/{parts[1]}"), parts[3], "/".join(parts[4:])
        content = dict(self.server.trees.get(key, [])).get(commit, {}).get(name)
        if content is None:
            return self.answer(404, b"", X_Error_Code="EntryNotFound")
        etag = hashlib.sha1(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": commit, "Content_Length": str(len(content))}
        return self.answer(200, content, **headers)

    def tree(self, key, revision):
        files = dict(self.server.trees[key])[revision]
        listed = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in sorted(files.items())
        ]
        return self.answer(200, listed)

    def info(self, key, revision):
        trees = self.server.trees.get(key)
        if trees is None:
            return self.answer(404, {"error": "no"}, X_Error_Code="RepoNotFound")
        known = dict(trees)
        commit = trees[-1][0] if revision in (None, "main") else revision
        if commit not in known:
            return self.answer(404, {"error": "no"}, X_Error_Code="RevisionNotFound")
        files = [{"rfilename": name} for name in sorted(known[commit])]
        return self.answer(
            200, {"id": key[1], "sha": commit, "siblings": files, "private": False, "tags": []}
        )


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.utils._http, "is_offline_mode", lambda: False, raising=False)
    yield server
    server.shutdown()
    server.server_close()


def test_a_detector_comes_back_as_it_was_pushed(hub, live, tmp_path):
    from graphhalu.scoring.hub import pull, push
    from graphhalu.scoring.scorer import AnswerScorer, load_detector

    run_folder = live["answers"].folder.parent
    address = push(run_folder, "me/probe")
    assert address.startswith("hf://me/probe@")
    folder = pull(address, tmp_path / "pulled")
    note = json.loads((folder / "pulled.json").read_text())
    assert address.endswith(note["commit"])
    where = {"name": str(live["model"]), "threads": 1}
    found = AnswerScorer(folder, **where).score("What is 3 plus 3?", "7")
    expected = live["answers"].score("What is 3 plus 3?", "7")
    assert found.score == pytest.approx(expected.score, abs=1e-6)
    again = load_detector(address, **where).score("What is 3 plus 3?", "7")
    assert again.probability == pytest.approx(expected.probability, abs=1e-6)


def test_the_card_says_what_it_was_trained_on_and_how_well_it_does(hub, live):
    from graphhalu.scoring.hub import push

    push(live["answers"].folder.parent, "me/probe", licence="mit")
    card = hub.trees["model", "me/probe"][-1][1]["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n")
    assert "| held out in training | AUROC |" in card
    assert "## Limits" in card
    assert "live-probe" in card


def test_a_store_comes_back_as_it_was_pushed(hub, live, tmp_path):
    from graphhalu import open_traces
    from graphhalu.scoring.hub import pull, push
    from graphhalu.traces.verify import verify_store

    store = live["store"]
    address = push(store, "me/traces")
    folder = pull(address, tmp_path / "pulled.zarr", is_store=True)
    assert verify_store(folder) == []
    assert [t.trace_id for t in open_traces(folder)] == [t.trace_id for t in open_traces(store)]


SAID = {"changed": "differs", "missing": "is missing", "added": "was added"}


@pytest.mark.parametrize("fault", SAID)
def test_what_differs_from_its_checksum_is_refused(hub, live, tmp_path, fault):
    from graphhalu.scoring.hub import pull, push

    push(live["answers"].folder.parent, "me/probe")
    commit, tree = hub.trees["model", "me/probe"][-1]
    if fault == "changed":
        tree["detector.json"] = tree["detector.json"] + b" "
    elif fault == "missing":
        del tree["model.safetensors"]
    else:
        tree["more.json"] = b"{}"
    with pytest.raises(CorruptStoreError, match=SAID[fault]):
        pull(f"me/probe@{commit}", tmp_path / "pulled")


def test_an_older_commit_stays_what_it_was(hub, live, tmp_path):
    from graphhalu.scoring.hub import pull, push

    first = push(live["answers"].folder.parent, "me/probe")
    push(live["tokens"].folder.parent, "me/probe")
    folder = pull(first, tmp_path / "pulled")
    assert json.loads((folder / "detector.json").read_text())["name"] == "live-probe"


@pytest.mark.parametrize(
    ("address", "said"), [("me", "expected hf://OWNER/NAME"), ("a/b/c", "expected hf://OWNER/NAME")]
)
def test_what_is_no_address_is_refused(address, said):
    from graphhalu.scoring.hub import pull

    with pytest.raises(UsageError, match=said):
        pull(address)


def test_a_repository_that_is_not_there_is_one_line(hub, capsys):
    assert run(["pull", "me/nothing"]) == 1
    assert "the hub does not give or take me/nothing" in capsys.readouterr().err


def test_what_is_no_detector_is_not_pushed(tmp_path, live):
    from graphhalu.scoring.hub import push

    with pytest.raises(UsageError, match="neither a trained detector nor a trace store"):
        push(tmp_path, "me/nothing")
    folder = tmp_path / "odd"
    shutil.copytree(live["answers"].folder, folder)
    (folder / "weights.pkl").write_bytes(b"")
    with pytest.raises(UsageError, match="holds weights"):
        push(folder, "me/nothing")


def test_a_hub_that_is_not_there_is_one_line(monkeypatch, live):
    from huggingface_hub import constants

    from graphhalu.scoring.hub import push

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(GraphhaluError, match="the hub does not give or take"):
        push(live["answers"].folder.parent, "me/probe")
