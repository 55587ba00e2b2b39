"""`up` with stand-ins for gateway and keeper: `up_with_stand_ins.py DATA_DIR [OPTION=JSON …]`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from gateway.errors import StartError
from gateway.local import processes
from gateway.local.ports import JsonVoice
from gateway.run.supervisor import Options, run_up
from gateway.settings.settings import Settings
from gateway.telemetry import logs

HERE = Path(__file__).resolve().parent


def command(*words: str) -> tuple[str, ...]:
    if words[0] == "demo-upstream":
        return processes.command(*words)
    role = "gateway" if words[0] == "serve" else "keeper"
    return (sys.executable, str(HERE / "stand_in.py"), role)


def main() -> int:
    given = {name: json.loads(value) for name, value in (word.split("=", 1) for word in sys.argv[2:])}
    asked = {name: given.pop(name) for name in ("upstream", "demo", "demo_upstream") if name in given}
    settings = Settings(data_dir=sys.argv[1], gateway_port=0, admin_port=0, workers=2, shutdown_grace_s=5.0)
    options = Options(
        settings.with_values(**given),
        upstream="http://127.0.0.1:9",
        demo=True,
        demo_upstream=False,
        command=command,
        migrate=lambda url: None,
        admit_writer=lambda url, _: url,
    )
    logs.configure()
    try:
        run_up(replace(options, **asked), JsonVoice(logs.logger("tollkeeper.up")))
    except StartError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
