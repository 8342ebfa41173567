"""Hub ids: pruned models are pushed to and loaded from a local server that speaks the hub's protocol."""

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import diffprune
from tests.conftest import tiny_pipeline
from tests.helpers.forks import Forks, forking

REVISIONS = {"main": "a" * 40, "older": "b" * 40}


class Hub(BaseHTTPRequestHandler):
    """Serves `root/<name>/<revision>/` as the repository team/<name>: the requests that huggingface_hub makes."""

    def __init__(self, *args: object, root: Path) -> None:
        self.root = root
        super().__init__(*args)

    def do_GET(self) -> None:
        words = unquote(urlsplit(self.path).path).strip("/").split("/")
        if words[:3] == ["api", "models", "team"] and self._opened(words[3]):
            revision = words[5] if len(words) > 5 else "main"
            self._info(revision, tree=len(words) > 4 and words[4] == "tree")
        elif words[0] == "team" and words[2] == "resolve" and self._opened(words[1]):
            self._file(words[3], "/".join(words[4:]))
        else:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        words = unquote(urlsplit(self.path).path).strip("/").split("/")
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        answer: dict[str, object] = {"errors": [], "warnings": []}  # of a check of the model card
        if words[:3] == ["api", "repos", "create"]:
            (self.root / json.loads(sent)["name"] / "main").mkdir(parents=True)
            answer = {"url": f"http://{self.headers['Host']}/team/{json.loads(sent)['name']}"}
        elif words[4:5] == ["preupload"]:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(sent)["files"]
            ]
            answer = {"files": files}
        elif words[4:5] == ["commit"]:
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    path = self.root / words[3] / "main" / line["value"]["path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(base64.b64decode(line["value"]["content"]))
            commit = REVISIONS["main"]
            answer = {
                "commitOid": commit,
                "commitUrl": f"http://{self.headers['Host']}/team/{words[3]}/commit/{commit}",
            }
        self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _opened(self, name: str) -> bool:
        self.repository = self.root / name
        return self.repository.is_dir()

    def _revision(self, name: str) -> str | None:
        there = (r for r in REVISIONS if (self.repository / r).is_dir())
        return next((r for r in there if name in (r, REVISIONS[r])), None)

    def _info(self, name: str, *, tree: bool) -> None:
        revision = self._revision(name)
        if revision is None:
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        files = [p for p in sorted((self.repository / revision).rglob("*")) if p.is_file()]
        names = [str(p.relative_to(self.repository / revision)) for p in files]
        if tree:
            value: object = [
                {"type": "file", "path": n, "size": p.stat().st_size, "oid": "0" * 40}
                for n, p in zip(names, files, strict=True)
            ]
        else:
            value = {
                "id": f"team/{self.repository.name}",
                "sha": REVISIONS[revision],
                "private": False,
                "siblings": [{"rfilename": n} for n in names],
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, file: str) -> None:
        revision = self._revision(name)
        path = self.repository / (revision or "") / file
        if revision is None or not path.is_file():
            code = "RevisionNotFound" if revision is None else "EntryNotFound"
            self._answer(404, b"", {"X-Error-Code": code, "X-Repo-Commit": REVISIONS.get(revision or "", "")})
            return
        content = path.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        self._answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": REVISIONS[revision]})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two revisions of a pruned pipeline, one unit ratio each."""
    root = tmp_path_factory.mktemp("hub")
    pipeline = tiny_pipeline()
    for revision, ratio in (("main", 0.5), ("older", 0.25)):
        small = diffprune.prune(pipeline, diffprune.plan(pipeline, criterion="magnitude", ratio=ratio))
        small.save_pretrained(root / "small" / revision)
        (root / "small" / revision / "README.md").write_text("# Small\n")
        (root / "small" / revision / "LICENSE").write_text("Do good.\n")
    return root


@pytest.fixture(scope="module")
def hub(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Run a hub; yields an interpreter that uses it, with a cache of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, root=folders))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path_factory.mktemp("cache")),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    with forking(tmp_path_factory.mktemp("forks"), environment) as interpreter:
        yield interpreter
    server.shutdown()
    server.server_close()
    thread.join()


def run(code: str, hub: Forks, folder: Path, *words: object) -> str:
    """Run code in a process of the hub's interpreter; returns what it prints."""
    (folder / "code.py").write_text(code)
    ended = hub.run([folder / "code.py", *words])
    assert ended.status == 0, ended.output
    return ended.output


LOAD = """
import torch
from diffusers import DDPMPipeline
import diffprune
channels = {}
for name, options in {"main": {}, "older": {"revision": "older"}}.items():
    pipe = DDPMPipeline.from_pretrained("team/small", **options)
    assert type(pipe.unet).__module__ == "diffprune"
    channels[name] = pipe.unet.conv_in.out_channels
assert channels == {"main": 8, "older": 12}, channels
images = pipe(batch_size=1, num_inference_steps=2, output_type="np").images
assert images.shape == (1, 16, 16, 1)
again = diffprune.load_pipeline("team/small", local_files_only=True, torch_dtype=torch.bfloat16)
assert again.unet.conv_in.weight.dtype == torch.bfloat16
unet = diffprune.UNet2DModel.from_pretrained("team/small", subfolder="unet", revision="older", local_files_only=True)
assert unet.conv_in.out_channels == 12
"""


def test_a_pruned_pipeline_loads_by_hub_id_and_revision(hub: Forks, tmp_path: Path) -> None:
    run(LOAD, hub, tmp_path)


COMMANDS = """
import sys
from diffprune.cli.main import main
assert main(["inspect", "team/none"]) == 1
assert main(["prune", "team/small", "--criterion", "magnitude", "--ratio", "0.25", "--out", sys.argv[1], "--json"]) == 0
"""


def test_the_command_line_takes_a_hub_id_and_carries_its_licence(hub: Forks, tmp_path: Path) -> None:
    """And says so where the hub does not have it."""
    out = tmp_path / "smaller"
    output = run(COMMANDS, hub, tmp_path, out)
    assert "team/none" in output
    assert "Traceback" not in output
    result = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    assert result["params_after"] < result["params_before"]
    assert (out / "LICENSE").read_text() == "Do good.\n"
    card = (out / "README.md").read_text()
    assert card.startswith("# Small\n\n## Pruned with diffprune")
    assert "requested: remove" in card
    assert json.loads((out / "run.json").read_text())["inputs"]["model"]["source"] == "team/small"
    assert len(diffprune.load_pipeline(out).unet.pruning.provenance) == 2


PUSH = """
import diffprune
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("team/small")
pipe.push_to_hub("team/pushed", token="hf_none")
pipe.unet.push_to_hub("team/bare", token="hf_none")
again = DiffusionPipeline.from_pretrained("team/pushed")
bare = diffprune.UNet2DModel.from_pretrained("team/bare")
for unet in (again.unet, bare):
    assert type(unet).__module__ == "diffprune"
    assert unet.pruning == pipe.unet.pruning
    assert all((a == b).all() for a, b in zip(unet.parameters(), pipe.unet.parameters(), strict=True))
"""


def test_a_pruned_pipeline_and_a_bare_denoiser_are_pushed_and_loaded_again(
    hub: Forks, folders: Path, tmp_path: Path
) -> None:
    run(PUSH, hub, tmp_path)
    assert (folders / "pushed" / "main" / "unet" / "pruning.json").is_file()
    assert (folders / "bare" / "main" / "pruning.json").is_file()
