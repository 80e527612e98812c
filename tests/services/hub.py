"""A stand-in for the Hugging Face Hub: the calls by which huggingface_hub uploads a dataset, over HTTP on this machine."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterable
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.services.http_server import HttpServer, request_body

TOKEN = "hf_" + "t" * 30
OWNER = "somebody"
LARGE = (".tar", ".parquet", ".png", ".jpg")  # what a dataset's .gitattributes keep as large files
LICENCES = {"apache-2.0", "openrail++", "mit", "other", "unknown"}


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class StandInHub(HttpServer):
    """One server with any number of datasets; ``faults`` are used up, one a request that contains their text.

    Attributes:
        datasets: files of each dataset by name, with their content.
        large: contents of large files by SHA-256, whether committed or not.
        commits: names of the files of each commit.
        requests: method and path of each request.
        faults: method, a part of the path, the status to answer with, and headers.
        models: fields of the cards of models by id.
        page: files in a page of a listing.
    """

    def __init__(self) -> None:
        super().__init__(partial(Handler, self))
        self.datasets: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.commits: list[list[str]] = []
        self.requests: list[str] = []
        self.faults: list[tuple[str, str, int, dict[str, str]]] = []
        self.models: dict[str, dict[str, Any]] = {}
        self.page = 1000
        self.lock = threading.Lock()

    def count(self, text: str) -> int:
        """Number of requests with a text in them."""
        return sum(text in request for request in self.requests)


class Refused(Exception):
    """An answer with an error."""

    def __init__(self, status: int, document: Any = None, **headers: str) -> None:
        super().__init__(status)
        self.status, self.document, self.headers = status, document or {"error": "refused"}, headers


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: StandInHub, *given: Any) -> None:
        self.hub = hub  # first, as what follows handles all requests
        super().__init__(*given)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, document: Any, headers: dict[str, str]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_request(self) -> None:
        body = request_body(self)
        self.headers_back: dict[str, str] = {}
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {self.path}")
            for fault in self.hub.faults:
                if fault[0] == self.command and fault[1] in self.path:
                    self.hub.faults.remove(fault)
                    self.answer(fault[2], {"error": "on request"}, fault[3])
                    return
            try:
                document = self.respond(body)
            except Refused as refused:
                self.answer(refused.status, refused.document, {n.replace("_", "-"): v for n, v in refused.headers.items()})
                return
        self.answer(200, document, self.headers_back)

    do_GET = do_POST = do_PUT = do_HEAD = handle_request

    def respond(self, body: bytes) -> Any:
        parts, query = urlsplit(self.path).path.strip("/").split("/"), parse_qs(urlsplit(self.path).query)
        if parts[:1] == ["stored"]:  # as by a signed url: without a token
            return self.store(parts[1], body)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and parts[:2] != ["api", "models"]:
            raise Refused(401)
        if parts == ["api", "whoami-v2"]:
            return {"type": "user", "name": OWNER, "orgs": []}
        if parts == ["api", "validate-yaml"]:
            return self.validate(json.loads(body)["content"])
        if parts == ["api", "repos", "create"]:
            return self.create(json.loads(body))
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:])
            if name not in self.hub.models:
                raise Refused(404, X_Error_Code="RepoNotFound")
            return {"id": name, "cardData": self.hub.models[name]}
        if parts[0] == "datasets" and parts[-1] == "batch":
            return self.batch(json.loads(body))
        name, call = "/".join(parts[2:4]), (parts[4:] or ["info"])[0]
        if parts[:2] != ["api", "datasets"] or name not in self.hub.datasets:
            raise Refused(404, X_Error_Code="RepoNotFound")
        if call == "info":
            return {"id": name, "sha": "0" * 40}
        files = self.hub.datasets[name]
        if call == "tree":
            return self.tree(files, int(query.get("cursor", ["0"])[0]))
        if call == "preupload":
            return {"files": [self.mode(files, one) for one in json.loads(body)["files"]]}
        assert call == "commit", self.path
        return self.commit(name, [json.loads(line) for line in body.splitlines() if line])

    def create(self, given: dict[str, Any]) -> Any:
        name = f"{given['organization'] or OWNER}/{given['name']}"
        if given["organization"] not in (None, OWNER):
            raise Refused(403)
        if name in self.hub.datasets:
            raise Refused(409, {"error": "You already created this dataset repo", "url": f"{self.hub.url}/datasets/{name}"})
        self.hub.datasets[name] = {".gitattributes": "\n".join(f"*{one} filter=lfs" for one in LARGE).encode()}
        self.hub.private[name] = given.get("visibility") == "private"
        return {"url": f"{self.hub.url}/datasets/{name}"}

    def tree(self, files: dict[str, bytes], start: int) -> Any:
        names = sorted(files)[start : start + self.hub.page]
        if start + self.hub.page < len(files):
            self.headers_back["Link"] = f'<{self.hub.url}{urlsplit(self.path).path}?cursor={start + self.hub.page}>; rel="next"'
        return [self.listed(name, files[name]) for name in names]

    def listed(self, name: str, content: bytes) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": blob(content)}
        if name.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
            found |= {"oid": blob(digest.encode()), "lfs": {"oid": digest, "size": len(content), "pointerSize": 130}}
        return found

    def mode(self, files: dict[str, bytes], one: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if one["path"].endswith(LARGE) else "regular"
        there = files.get(one["path"])
        oid = None if there is None else hashlib.sha256(there).hexdigest() if mode == "lfs" else blob(there)
        return {"path": one["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def batch(self, given: dict[str, Any]) -> Any:
        objects = []
        for one in given["objects"]:
            found = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.large:
                found["actions"] = {"upload": {"href": f"{self.hub.url}/stored/{one['oid']}?X-Amz-Signature=secret123"}}
            objects.append(found)
        return {"objects": objects, "transfer": "basic"}

    def store(self, digest: str, body: bytes) -> Any:
        if hashlib.sha256(body).hexdigest() != digest:
            raise Refused(400)
        self.hub.large[digest] = body
        return {}

    def validate(self, card: str) -> Any:
        fields = yaml.safe_load(card.split("---\n")[1])
        if fields.get("license") not in LICENCES:
            raise Refused(400, {"errors": [{"message": '"license" must be one of the known ones'}], "warnings": []})
        return {"errors": [], "warnings": []}

    def commit(self, name: str, lines: Iterable[dict[str, Any]]) -> Any:
        changed = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changed[value["path"]] = self.hub.large[value["oid"]]
        self.hub.datasets[name] |= changed
        self.hub.commits.append(list(changed))
        number = f"{len(self.hub.commits):040d}"
        return {
            "commitUrl": f"{self.hub.url}/datasets/{name}/commit/{number}",
            "commitOid": number,
            "success": True,
            "hookOutput": "",
        }
