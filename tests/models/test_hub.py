"""Push to and load from a model hub: against a stand-in server on the loopback address, never the network."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from deepSTRF.models import NeuralModel
from deepSTRF.models.audio import Linear, Transformer
from deepSTRF.models.io.hub import (  # inner: tested by itself
    download_checkpoint,
    is_repo_id,
    locate_checkpoint,
)

TOKEN = "hf_aSecretThatMustNotLeak"
REPO = "lab/some-model"


class StandIn(ThreadingHTTPServer):
    """The few routes of a model hub that saving and loading call; one branch, small files, one token."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.calls: list[str] = []
        self.messages: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sha(self, repo: str) -> str:
        return hashlib.sha1(f"{repo}{len(self.commits[repo])}".encode()).hexdigest()

    def files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        history = self.commits[repo]
        for number in range(1, len(history) + 1):
            if revision == hashlib.sha1(f"{repo}{number}".encode()).hexdigest():
                return history[number - 1]
        return (history[-1] if history else {}) if revision == "main" else None


class Handler(BaseHTTPRequestHandler):
    """Answers the calls of huggingface_hub.HfApi and snapshot_download."""

    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.calls.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0]
        if found := re.fullmatch(r"/api/models/(\w+/[\w-]+)(?:/revision/(\w+))?", path):
            repo, revision = found[1], found[2] or "main"
            if self._readable(repo, revision):
                sha = self.server.sha(repo) if revision == "main" else revision
                siblings = [{"rfilename": name} for name in self.server.files(repo, revision) or {}]
                self._answer({"id": repo, "modelId": repo, "sha": sha, "siblings": siblings})
        elif found := re.fullmatch(r"/api/models/(\w+/[\w-]+)/tree/(\w+)", path):
            if self._readable(found[1], found[2]):
                files = self.server.files(found[1], found[2]) or {}
                self._answer(
                    [
                        {
                            "type": "file",
                            "path": name,
                            "size": len(body),
                            "oid": hashlib.sha1(body).hexdigest(),
                        }
                        for name, body in files.items()
                    ]
                )
        elif found := re.fullmatch(r"/(\w+/[\w-]+)/resolve/(\w+)/(.+)", path):
            if self._readable(found[1], found[2]):
                self._file(found[2], (self.server.files(found[1], found[2]) or {}).get(found[3]))
        else:
            self._answer({"error": f"no route {path}"}, 404)

    def do_POST(self) -> None:
        self.server.calls.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.split("?")[0]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            is_new = repo not in self.server.commits
            self.server.commits.setdefault(repo, [])
            if asked.get("visibility") == "private" or asked.get("private"):
                self.server.private.add(repo)
            self._answer({"url": f"{self.server.address}/{repo}"}, 200 if is_new else 409)
        elif path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\nlibrary_name: deepSTRF\n")
            self._answer({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/(\w+/[\w-]+)/preupload/main", path):
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer({"files": modes})
        elif found := re.fullmatch(r"/api/models/(\w+/[\w-]+)/commit/main", path):
            self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._answer({"error": f"no route {path}"}, 404)

    def _file(self, revision: str, body: bytes | None) -> None:
        if body is None:
            self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        else:
            headers = {"X-Repo-Commit": revision, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}
            self._answer(body, headers=headers)

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        history = self.server.commits[repo]
        files = dict(history[-1]) if history else {}
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        history.append(files)
        sha = self.server.sha(repo)
        self._answer({"commitUrl": f"{self.server.address}/{repo}/commit/{sha}", "commitOid": sha})

    def _readable(self, repo: str, revision: str) -> bool:
        hidden = repo in self.server.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        if repo not in self.server.commits or hidden:
            self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return False
        if self.server.files(repo, revision) is None:
            self._answer({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return False
        return True

    def _answer(self, what: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = what if isinstance(what, bytes) else json.dumps(what).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def hub(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """An empty hub. Its address never changes: older huggingface_hub read it once, at import."""
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub (the extra hub)")
    for kept in (server.commits, server.private, server.calls, server.messages):
        kept.clear()
    return server


@pytest.fixture
def cache(tmp_path: Path) -> dict[str, Any]:
    """Copies go into the test's folder, and no token of the machine's is used."""
    return {"cache_dir": tmp_path / "cache", "token": False}


def test_push_and_load(hub: StandIn, cache: dict[str, Any]) -> None:
    model = Linear(12, 3, out_neurons=2, wav2spec=None)
    facts = {"scores": {"cc_norm": 0.57}, "neurons": ["a", "b"]}
    address = model.push_to_hub(REPO, metadata=facts, token=TOKEN)
    assert address == f"{hub.address}/{REPO}"
    ours = {"README.md", "config.json", "manifest.json", "metadata.json", "model.safetensors"}
    assert set(hub.commits[REPO][-1]) == ours
    assert hub.messages == ["Save Linear with deepSTRF"]
    twin, metadata = NeuralModel.from_pretrained(REPO, return_metadata=True, **cache)
    assert metadata == facts
    x = torch.randn(1, 1, 12, 40)
    assert torch.equal(twin(x), model.eval()(x))
    assert isinstance(Linear.from_pretrained(REPO, **cache), Linear)
    with pytest.raises(TypeError, match=r"Linear\.from_pretrained"):
        Transformer.from_pretrained(REPO, **cache)


def test_the_card_of_a_pushed_model_loads_it_from_there(hub: StandIn, cache: dict[str, Any]) -> None:
    Linear(12, 3).push_to_hub(REPO, token=TOKEN)
    card = hub.commits[REPO][-1]["README.md"].decode()
    assert f'NeuralModel.from_pretrained("{REPO}")' in card
    Linear(12, 3).push_to_hub(REPO, token=TOKEN, model_card="---\nlibrary_name: deepSTRF\n---\n# Mine\n")
    assert hub.commits[REPO][-1]["README.md"].decode().endswith("# Mine\n")


def test_a_second_push_replaces_everything(hub: StandIn, cache: dict[str, Any]) -> None:
    Linear(12, 3).push_to_hub(REPO, metadata={"seed": 0}, token=TOKEN)
    first = hub.sha(REPO)
    Linear(12, 5).push_to_hub(REPO, token=TOKEN, commit_message="Longer window")
    assert hub.messages[-1] == "Longer window"
    model, metadata = Linear.from_pretrained(REPO, return_metadata=True, **cache)
    assert (model.T, metadata) == (5, None)  # no metadata of the first save beside the second's weights
    old, metadata = Linear.from_pretrained(REPO, revision=first, return_metadata=True, **cache)
    assert (old.T, metadata) == (3, {"seed": 0})


def test_only_our_files_are_fetched(hub: StandIn, cache: dict[str, Any]) -> None:
    Linear(12, 3).push_to_hub(REPO, token=TOKEN)
    hub.commits[REPO][-1]["pickle.bin"] = b"never read"
    folder = download_checkpoint(REPO, **cache)
    ours = ["README.md", "config.json", "manifest.json", "model.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == ours
    assert not any("pickle" in call for call in hub.calls)


def test_an_existing_folder_wins(
    hub: StandIn, cache: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Linear(12, 3).push_to_hub(REPO, token=TOKEN)
    asked = len(hub.calls)
    monkeypatch.chdir(tmp_path)
    Linear(12, 7).save_pretrained(REPO)
    assert Linear.from_pretrained(REPO, **cache).T == 7
    assert len(hub.calls) == asked


def test_private_repositories(hub: StandIn, cache: dict[str, Any]) -> None:
    Linear(12, 3).push_to_hub(REPO, private=True, token=TOKEN)
    assert REPO in hub.private
    with pytest.raises(
        FileNotFoundError, match=r"neither a folder nor a repository.*'lab/some-model'.*token"
    ):
        Linear.from_pretrained(REPO, **cache)
    assert Linear.from_pretrained(REPO, cache_dir=cache["cache_dir"], token=TOKEN).T == 3


def test_what_does_not_exist(hub: StandIn, cache: dict[str, Any]) -> None:
    with pytest.raises(FileNotFoundError, match="'lab/none'"):
        Linear.from_pretrained("lab/none", **cache)
    Linear(12, 3).push_to_hub(REPO, token=TOKEN)
    with pytest.raises(FileNotFoundError, match=r"'lab/some-model' at revision 'v9'"):
        Linear.from_pretrained(REPO, revision="v9", **cache)


def test_a_wrong_token_may_not_push(hub: StandIn) -> None:
    with pytest.raises(PermissionError, match=r"refused access.*401.*token"):
        Linear(12, 3).push_to_hub(REPO, token="hf_wrong")
    assert not hub.commits


def test_a_model_that_cannot_be_saved_is_not_sent(hub: StandIn) -> None:
    model = Linear(12, 3)
    model.core = torch.nn.Conv1d(1, 1, 1)
    with pytest.raises(ValueError, match="cannot be rebuilt"):
        model.push_to_hub(REPO, token=TOKEN)
    assert not hub.calls


def test_without_a_hub_a_copy_still_serves(
    hub: StandIn, cache: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Linear(12, 3).push_to_hub(REPO, token=TOKEN)
    Linear.from_pretrained(REPO, **cache)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert Linear.from_pretrained(REPO, **cache).T == 3
    with pytest.raises(ConnectionError, match=r"cannot be reached.*'lab/other'"):
        Linear.from_pretrained("lab/other", **cache)


def test_the_token_is_nowhere_on_disk_nor_in_the_log(
    hub: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        Linear(12, 3).push_to_hub(REPO, private=True, token=TOKEN)
        Linear.from_pretrained(REPO, cache_dir=tmp_path / "cache", token=TOKEN)
        with pytest.raises(FileNotFoundError) as caught:
            Linear.from_pretrained("lab/none", cache_dir=tmp_path / "cache", token=TOKEN)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    secret = TOKEN.encode()
    assert not any(secret in path.read_bytes() for path in files)
    assert not any(secret in body for body in hub.commits[REPO][-1].values())
    printed = capfd.readouterr()
    texts = [caplog.text, printed.out, printed.err, str(caught.value), repr(caught.value.__cause__)]
    assert not any(TOKEN in text for text in texts)


# ------------------------------ without huggingface_hub


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("lab/model", True), ("a/b", True), ("lab/model-1.2_x", True),
        ("model", False), ("a/b/c", False), ("/a/b", False), ("./b", False), ("../b", False), ("a/", False),
        ("a b/c", False), ("a/b\n", False), ("~/b", False), (Path("a/b"), False), (3, False),
    ],
)  # fmt: skip
def test_names_of_repositories(name: object, answer: bool) -> None:
    assert is_repo_id(name) is answer


def test_a_path_is_never_looked_up(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint folder.*user/name"):
        NeuralModel.from_pretrained(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint folder"):
        locate_checkpoint("./lab/none")
    with pytest.raises(ValueError, match="user/name"):
        Linear(12, 3).push_to_hub("model")


def test_without_the_extra_the_text_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"'lab/none' is no folder here.*pip install -e .\.\[hub\]"):
        NeuralModel.from_pretrained("lab/none")
    with pytest.raises(ImportError, match=r"pip install -e .\.\[hub\]"):
        Linear(12, 3).push_to_hub(REPO)
