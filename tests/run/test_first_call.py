"""What `up` shows a person to paste is answered by the configuration that it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.local.ports import held_port
from gateway.run.serving import gateway_port
from gateway.run.supervisor import Options, _ours, first_call
from gateway.settings.settings import load

OCR = "upstreams: {ocr: {base_url: 'http://127.0.0.1:9100'}}\nservices: {scan: {upstream: ocr}}"
GPU = "upstreams: {gpu: {base_url: 'http://127.0.0.1:8000', family: openai}}\n"
CLAUDE = "upstreams: {c: {base_url: 'http://127.0.0.1:8000', family: anthropic}}\n"
CHAT, USED = "/v1/chat/completions", "/.tollkeeper/usage"


@pytest.mark.parametrize(
    ("written", "environ", "path", "model"),
    [
        (OCR, {}, USED, ""),
        (OCR, {"OPENAI_API_KEY": "k"}, CHAT, "gpt-4o-mini"),
        (GPU + "models: [{name: llama, targets: [{upstream: gpu}]}]", {}, CHAT, "llama"),
        (GPU + "models: [{prefix: llama, targets: [{upstream: gpu}]}]", {}, USED, ""),
        (GPU + "models: [{name: llama, organization_id: 7, targets: [{upstream: gpu}]}]", {}, USED, ""),
        (CLAUDE + "models: [{name: opus, targets: [{upstream: c}]}]", {}, USED, ""),
        ("upstreams: {openai: {base_url: 'http://127.0.0.1:8000', headers: {x: y}}}", {}, USED, ""),
    ],
)
def test_the_first_call_is_one_that_the_file_answers(
    tmp_path: Path, written: str, environ: dict[str, str], path: str, model: str
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(written)
    settings = load(environ, file)
    options = Options(settings, "", demo=True, demo_upstream=False)
    line = first_call(options, settings, "http://gateway", "tk_1")
    assert line.startswith(f"curl -s http://gateway{path} -H 'Authorization: Bearer tk_1'")
    assert f'"model": "{model}"' in line or not model
    named = Options(settings, "http://127.0.0.1:1", demo=True, demo_upstream=False)
    assert CHAT in first_call(named, settings, "http://gateway", "tk_1")


@pytest.mark.parametrize("apart", [True, False])
def test_in_a_terminal_no_process_of_ours_logs_between_the_steps(tmp_path: Path, *, apart: bool) -> None:
    settings = load({}).with_values(data_dir=str(tmp_path), gateway_port=0, admin_port=0)
    options = Options(settings, "", demo=True, demo_upstream=False, apart=apart)
    with gateway_port(settings) as held, held_port("127.0.0.1", 0, "Admin API") as admin:
        logs = {one.log for _, one in _ours(options, settings, held, admin)}
    assert logs == {tmp_path / "logs" / "tollkeeper.log" if apart else None}
