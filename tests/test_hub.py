"""A study goes to the Hub and comes back whole, against a small Hub in this process; no token is told or stored."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from helpers import artifacts, hub
from helpers.config import ConfigError

ROOT = Path(__file__).parents[1]
TOKEN = "hf_" + "SecretSecretSecret"
SIGNATURE = "SignedSigned"
REPO = "owner/tiny"


class Hub(ThreadingHTTPServer):
    """The endpoints of the Hub that its client asks when files are committed and read."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.commits: dict[str, dict[str, bytes]] = {}
        self.main, self.private = "", None
        self.stored: dict[str, bytes] = {}  # large files by their sha256
        self.tokens: set[str | None] = set()
        self.refusing = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, files: dict[str, bytes]) -> str:
        self.main = sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[self.main] = files
        return self.main


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, content: object, status: int = 200, **headers: str) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self) -> None:
        site, path, body = self.server, unquote(self.path.split("?")[0]), self.body()
        site.tokens.add(self.headers.get("Authorization"))
        if site.refusing:
            return self.answer({"error": f"no such luck with {self.headers.get('Authorization')}"}, site.refusing)
        if path == "/api/repos/create":
            new, site.private = site.private is None, json.loads(body).get("visibility", "public") == "private"
            return self.answer({"url": f"{site.url}/{REPO}"}, 200 if new else 409)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path == f"/api/models/{REPO}/preupload/main":
            modes = [{"path": file["path"], "shouldIgnore": False,
                      "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                     for file in json.loads(body)["files"]]  # fmt: skip
            return self.answer({"files": modes})
        if path == f"/{REPO}.git/info/lfs/objects/batch":
            upload = f"{site.url}/lfs/{{}}?X-Amz-Signature={SIGNATURE}"
            objects = [{**asked, "actions": {"upload": {"href": upload.format(asked["oid"])}}}
                       for asked in json.loads(body)["objects"]]  # fmt: skip
            return self.answer({"transfer": "basic", "objects": objects})
        if path == f"/api/models/{REPO}/commit/main":
            files = dict(site.commits.get(site.main, {}))
            for line in map(json.loads, body.decode().splitlines()):
                said = line["value"]
                if line["key"] == "file":
                    files[said["path"]] = base64.b64decode(said["content"])
                elif line["key"] == "lfsFile":
                    files[said["path"]] = site.stored[said["oid"]]
            commit = site.commit(files)
            return self.answer({"commitUrl": f"{site.url}/{REPO}/commit/{commit}", "commitOid": commit})
        self.answer({"error": path}, 404)

    def do_PUT(self) -> None:
        content = self.body()
        self.server.stored[sha256(content).hexdigest()] = content
        self.answer({})

    def do_GET(self) -> None:
        site, path = self.server, unquote(self.path.split("?")[0])
        site.tokens.add(self.headers.get("Authorization"))
        if found := re.fullmatch(rf"/api/models/{REPO}/revision/(\w+)", path):
            commit = site.main if found[1] == "main" else found[1]
            if commit in site.commits:
                return self.answer({"id": REPO, "sha": commit, "siblings": []})
        if found := re.fullmatch(rf"/{REPO}/resolve/(\w+)/(.+)", path):
            if (content := site.commits.get(found[1], {}).get(found[2])) is not None:
                etag = f'"{sha1(content).hexdigest()}"'
                return self.answer(content, X_Repo_Commit=found[1], ETag=etag)
        self.answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET


@pytest.fixture
def site():
    with Hub() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def ship(root: Path, text: str) -> None:
    """A set of one network and one result, the one made from the other."""
    (root / "weights/tiny/net").mkdir(parents=True, exist_ok=True)
    (root / "results/tiny").mkdir(parents=True, exist_ok=True)
    (root / "weights/tiny/net/0.safetensors").write_bytes(text.encode() * 1000)
    (root / "results/tiny/0.json").write_text(json.dumps({"is": text}))
    (root / "results/tiny/empty.csv").touch()
    made = {"settings": {"epochs": 3}, "environment": {"torch": "1.2.3"}}
    artifacts.write_manifest(root / "weights/tiny", made)
    of = artifacts.sha256(root / "weights/tiny" / artifacts.MANIFEST)
    artifacts.write_manifest(root / "results/tiny", {"weights": of, **made})


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for kind in artifacts.KINDS
            for p in sorted((root / kind).rglob("*")) if p.is_file()}  # fmt: skip


COMMANDS = """import json, os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from helpers import hub
from helpers.__main__ import main
for folder, words in json.loads(sys.argv[1]):
    os.chdir(folder)
    for function in (hub.push, hub.pull):
        function.__kwdefaults__["root"] = Path(folder)
    hub.card.__defaults__ = (Path(folder),)
    print("exit", main([*words, "tiny", "--hub", {repo!r}]), file=sys.stderr, flush=True)
"""


@pytest.fixture
def call(site, tmp_path):
    """``call((folder, ["push", ...]), ...)``: the command line there, with a token in the environment; what it printed
    and ``exit CODE`` for each."""

    def run(*commands: tuple[Path, list[str]]) -> str:
        env = {**os.environ, "HF_ENDPOINT": site.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1",
               "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip
        script = COMMANDS.format(root=str(ROOT), repo=REPO)
        given = json.dumps([(str(folder), words) for folder, words in commands])
        done = subprocess.run([sys.executable, "-c", script, given], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return run


def test_what_is_pushed_is_pulled_by_its_commit_and_no_token_is_told(site, call, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    ship(here, "first")
    pushed = call((here, ["push"]))
    assert "exit 0" in pushed and site.private, pushed
    first = site.main
    assert f"python -m helpers pull tiny --hub {REPO} --revision {first}" in pushed
    card = site.commits[first]["README.md"].decode()
    digest = artifacts.sha256(here / "weights/tiny/net/0.safetensors")
    assert f"| `weights/tiny/net/0.safetensors` | 5,000 | `{digest}` |" in card and '"epochs": 3' in card

    ship(there, "theirs")
    theirs = tree(there)
    mixed = {name: content for name, content in theirs.items() if name.startswith("weights")}
    mixed = site.commit({**site.commits[first], **mixed})
    site.commit({**site.commits[first], "weights/tiny/net/0.safetensors": b"x" * 5000})
    pulled = call((there, ["pull", "--revision", first]), (there, ["pull"]), (there, ["pull", "--revision", mixed]))
    assert re.findall(r"exit \d", pulled) == ["exit 0", "exit 2", "exit 2"]
    assert "0.safetensors" in pulled and "sha256" in pulled, "main has other bytes than its manifest says"
    assert "was made from other weights" in pulled and "Traceback" not in pulled
    assert tree(there) == tree(here)
    (kept,) = (there / hub.REPLACED).iterdir()
    assert {name: (kept / name.replace("tiny/", "", 1)).read_bytes() for name in theirs} == theirs

    assert site.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in pushed + pulled and SIGNATURE not in pushed + pulled
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]


def test_every_set_that_a_pulled_one_replaces_is_kept(site, call, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    ship(here, "first")
    call((here, ["push"]))
    sets = []
    for result in ("one", "other"):  # of the same weights, measured anew
        ship(there, "theirs")
        (there / "results/tiny/0.json").write_text(json.dumps({"is": result}))
        made = artifacts.read_manifest(there / "results/tiny")["provenance"]
        artifacts.write_manifest(there / "results/tiny", made)
        sets.append(tree(there))
        assert "exit 0" in call((there, ["pull"]))
    kept = [
        {name: path.read_bytes() for name in one if (path := folder / name.replace("tiny/", "", 1)).exists()}
        for folder in (there / hub.REPLACED).iterdir()
        for one in sets[:1]
    ]
    assert len(kept) == 2 and all(one in kept for one in sets)


def test_a_hub_that_cannot_be_reached_is_one_line(site, call, tmp_path):
    ship(tmp_path / "here", "first")
    site.server_port = 9  # where nobody answers
    printed = call((tmp_path / "here", ["push"]), (tmp_path / "here", ["pull"]))
    assert re.findall(r"exit \d", printed) == ["exit 2", "exit 2"] and "Traceback" not in printed
    assert f"{REPO}: " in printed and TOKEN not in printed


def test_what_the_hub_refuses_is_said_in_one_line_without_the_token(site, call, tmp_path):
    ship(tmp_path / "here", "first")
    site.refusing = 403
    printed = call((tmp_path / "here", ["push"]))
    assert "exit 2" in printed and f"{REPO}: " in printed and "403" in printed and "Traceback" not in printed
    assert TOKEN not in printed


def test_a_set_that_is_not_whole_is_not_pushed(tmp_path, monkeypatch):
    ship(tmp_path, "first")
    (tmp_path / "weights/tiny/net/0.safetensors").write_bytes(b"changed")
    monkeypatch.setattr(hub, "_asking", lambda _: pytest.fail("the Hub was asked"))
    with pytest.raises(artifacts.ArtifactError, match="0.safetensors"):
        hub.push("tiny", REPO, root=tmp_path)
    with pytest.raises(ConfigError, match="no study 'tinny' is shipped: did you mean tiny"):
        hub.push("tinny", REPO, root=tmp_path)
    for study, repo in (("../tiny", REPO), ("tiny", "no-owner"), ("tiny", "a/b/c")):
        with pytest.raises(ConfigError):
            hub.pull(study, repo, root=tmp_path)


def test_the_card_of_every_shipped_study_can_be_made():
    for folder in (ROOT / "weights").glob("[!.]*"):
        card = hub.card(folder.name, REPO)
        for name in artifacts.listed(folder):
            assert f"weights/{folder.name}/{name}" in card
