"""OpenStack Swift with its S3 API, on this machine: a real server to break."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

SERVERS = {"account": "", "container": "", "object": "", "proxy": ""}
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test:tester", "AWS_SECRET_ACCESS_KEY": "testing"}
_PIPELINE = "catch_errors gatekeeper healthcheck listing_formats bulk s3api tempauth copy slo dlo versioned_writes proxy-server"
_STORAGE = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {conf}
devices = {data}
mount_check = false
disable_fallocate = true
recon_cache_path = {run}
log_address = /nonexistent
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""
_PROXY = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {conf}
[pipeline:main]
pipeline = {pipeline}
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
check_bucket_owner = false
s3_acl = false
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
"""
_CONF = "[swift-hash]\nswift_hash_path_suffix = tests\n[storage-policy:0]\nname = gold\ndefault = yes\n"


def environment() -> Path:
    """A virtual environment with Swift, made once for all checkouts of this user.

    Raises:
        subprocess.CalledProcessError: it cannot be installed here.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hybridiff-tests" / "swift"
    if not (cache / "bin" / "swift-proxy-server").exists():
        shutil.rmtree(cache, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", cache], check=True)
        subprocess.run([cache / "bin" / "pip", "install", "-q", "swift"], check=True, timeout=300)
    return cache


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Swift:
    """A server with its data below ``run``.

    Attributes:
        url: address of its S3 API.
    """

    def __init__(self, run: Path, binaries: Path) -> None:
        self._run, self._bin = run, binaries / "bin"
        self._ports = {name: free_port() for name in SERVERS}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.url = f"http://127.0.0.1:{self._ports['proxy']}"
        self._configure()

    def start(self) -> None:
        """Starts what does not run, and waits until it answers."""
        for name in SERVERS:
            if name not in self._processes:
                with (self._run / f"{name}.log").open("ab") as log:
                    command = [self._bin / f"swift-{name}-server", self._run / "conf" / f"{name}-server.conf"]
                    self._processes[name] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/healthcheck", timeout=2):
                return
            assert time.monotonic() < deadline, (self._run / "proxy.log").read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL to all four servers."""
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes.clear()

    def _configure(self) -> None:
        conf, data = self._run / "conf", self._run / "data"
        for directory in (conf, data / "d1"):
            directory.mkdir(parents=True)
        (conf / "swift.conf").write_text(_CONF)
        user = subprocess.check_output(["id", "-un"], text=True).strip()
        values = {"conf": conf, "data": data, "run": self._run, "user": user}
        for name in ("account", "container", "object"):
            port = self._ports[name]
            (conf / f"{name}-server.conf").write_text(_STORAGE.format(name=name, port=port, **values))
            for step in (["create", "4", "1", "0"], ["add", f"r1z1-127.0.0.1:{port}/d1", "1"], ["rebalance"]):
                builder = [self._bin / "swift-ring-builder", f"{name}.builder", *step]
                subprocess.run(builder, cwd=conf, check=True, stdout=subprocess.DEVNULL)
        plain = set(_PIPELINE.split()[:-1]) - {"s3api", "tempauth"}
        filters = "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in sorted(plain))
        proxy = _PROXY.format(port=self._ports["proxy"], pipeline=_PIPELINE, **values)
        (conf / "proxy-server.conf").write_text(proxy + filters)
