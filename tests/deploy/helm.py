"""Helm itself, as a library: `python -m tests.deploy.helm` renders and lints charts as that program would.

There is no package of the program. A wheel of somebody else's has Helm 4 as a shared library. It is fetched
by its hash, only unpacked under build/, and loaded in a process of its own. Helm renders a chart on its way
to install it, so it is shown a Kubernetes API on loopback that has nothing. A template that is added says
what was rendered in the name of a template that does not exist, and there Helm stops.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tree import ROOT
from tests.waiting import HUNG_S

CHART = ROOT / "deploy" / "helm" / "tollkeeper"
UNPACKED = ROOT / "build" / "helm"
WHEEL = "helm-sdkpy==0.1.32 --hash=sha256:bcf5bf73cacc373bebedfb9c988969aa12a9eda86a140deba658fbf28eb789c5"
LIBRARY = "helm_sdkpy/_lib/linux-amd64/libhelm_sdkpy.so"
FETCH_S_MAX = 180
SAID = "said.yaml"
TELL = """\
{{- $said := list }}
{{- range $name := list %s }}
{{- $said = append $said (include (print $.Template.BasePath "/" $name) $) }}
{{- end }}
{{- include (print "rendered:" (join "\\n---\\n" $said | b64enc) ":") . }}
"""
ANSWERS: dict[str, Any] = {
    "/version": {"major": "1", "minor": "31", "gitVersion": "v1.31.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
}


@cache
def library() -> Path:
    """Where the library is; the test is skipped where it cannot be had."""
    found = UNPACKED / LIBRARY
    if not found.exists():
        UNPACKED.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=UNPACKED) as name:
            folder = Path(name)
            (folder / "wheel.txt").write_text(WHEEL)
            command = [
                *(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--ignore-requires-python"),
                *("--require-hashes", "-d", name, "-r", str(folder / "wheel.txt")),
            ]
            try:
                subprocess.run(command, capture_output=True, text=True, check=True, timeout=FETCH_S_MAX)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                why = f"{error} {str(error.stderr or '')[-200:]}"
                pytest.skip(f"Helm's library cannot be fetched: {why}", allow_module_level=True)
            wheels = list(folder.glob("*.whl"))
            with zipfile.ZipFile(wheels[0]) as archive:
                archive.extract(LIBRARY, folder)
            found.parent.mkdir(parents=True, exist_ok=True)
            (folder / LIBRARY).replace(found)
    return found


def rendered(*values: dict[str, Any], extra: str = "") -> list[list[dict[str, Any]] | str]:
    """For each of these values the objects of the chart, or what Helm says is wrong; all by one process.

    `extra` is one more template.
    """
    with tempfile.TemporaryDirectory() as folder:
        chart = Path(folder) / "tollkeeper"
        shutil.copytree(CHART, chart)
        templates = chart / "templates"
        if extra:
            (templates / "extra.yaml").write_text(extra)
        names = sorted(path.name for path in templates.glob("*.yaml"))
        (templates / SAID).write_text(TELL % " ".join(f'"{name}"' for name in names))
        asked = json.dumps([str(library()), str(chart), list(values)])
        found: list[list[dict[str, Any]] | str] = []
        for said in _process("render", asked):
            told = re.search(r'"rendered:([A-Za-z0-9+/=]+):"', said)
            text = base64.b64decode(told[1]).decode() if told else ""
            found.append([each for each in yaml.safe_load_all(text) if each] if told else said)
    return found


def lint() -> dict[str, Any]:
    """What `helm lint` says of the chart."""
    (said,) = _process("lint", json.dumps([str(library()), str(CHART), []]))
    found: dict[str, Any] = json.loads(said)
    return found


def pushed(remote: str, folder: Path, ca_file: str) -> Path:
    """The packed chart, as it was pushed to a registry on this machine."""
    asked = json.dumps([str(library()), str(CHART), [[remote, str(folder)]]])
    (said,) = _process("push", asked, SSL_CERT_FILE=ca_file)
    return Path(said)


def _process(verb: str, asked: str, **environ: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.deploy.helm", verb], input=asked, capture_output=True, text=True,
        check=False, timeout=HUNG_S, cwd=ROOT, env=os.environ | environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said: list[str] = json.loads(done.stdout.splitlines()[-1])  # Helm says on its own what it pushed
    return said


class _Api(BaseHTTPRequestHandler):
    """A cluster without anything in it."""

    def do_GET(self) -> None:
        found = ANSWERS.get(self.path.partition("?")[0])
        data = json.dumps(found or {}).encode()
        self.send_response(200 if found else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words: object) -> None:
        pass


def _main(verb: str) -> None:
    path, chart, values = json.loads(sys.stdin.read())
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        access = Path(folder) / "access.json"
        cluster = {"server": f"http://127.0.0.1:{server.server_port}"}
        access.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": cluster}], "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        }))  # fmt: skip
        helm = ctypes.CDLL(path)
        helm.helm_sdkpy_last_error.restype = ctypes.c_char_p
        handle, out = ctypes.c_ulonglong(), ctypes.c_char_p()
        failed = helm.helm_sdkpy_config_create(
            b"toll", str(access).encode(), None, b"{}", ctypes.byref(handle)
        )
        assert not failed, helm.helm_sdkpy_last_error()
        said = []
        if verb == "lint":
            assert not helm.helm_sdkpy_lint(handle, chart.encode(), ctypes.byref(out))
            said.append((out.value or b"").decode())
        if verb == "push":
            ((remote, to),) = values
            handed = helm.helm_sdkpy_package(handle, chart.encode(), to.encode(), ctypes.byref(out))
            assert not handed, helm.helm_sdkpy_last_error()
            packed = out.value or b""
            refused = helm.helm_sdkpy_push(handle, packed, remote.encode(), b"{}")
            assert not refused, helm.helm_sdkpy_last_error()
            said, values = [packed.decode()], []
        options = json.dumps({"wait": False, "timeout_seconds": 30, "server_side_apply": "false"}).encode()
        for each in values:
            helm.helm_sdkpy_install(
                handle, b"prod", chart.encode(), json.dumps(each).encode(), b"", options, ctypes.byref(out)
            )
            said.append((helm.helm_sdkpy_last_error() or b"").decode())
        print(json.dumps(said))


if __name__ == "__main__":
    _main(sys.argv[1])
