"""`up` with stand-ins for gateway and keeper: `up_with_stand_ins.py DATA_DIR [OPTION=JSON …]`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from gateway.local.announce import JsonVoice
from gateway.local.supervisor.parts import Endpoints, Options, Parts
from gateway.local.supervisor.up import run_up
from gateway.telemetry import logs

HERE = Path(__file__).resolve().parent


def settings_line(endpoints: Endpoints) -> bytes:
    return json.dumps(
        {
            "gateway_port": endpoints.gateway_port,
            "keeper_port": endpoints.admin_port,
            "log": str(endpoints.data_dir / "stand_in.log"),
            "told": [name for name in ("database_url", "admin_token") if getattr(endpoints, name)],
        }
    ).encode()


def main() -> int:
    stand_in = (sys.executable, str(HERE / "stand_in.py"))
    options = Options(
        data_dir=Path(sys.argv[1]),
        gateway_host="127.0.0.1",
        gateway_port=0,
        admin_host="127.0.0.1",
        admin_port=0,
        workers=2,
        redis_url="",
        database_url="",
        upstream="http://127.0.0.1:9",
        admin_token="",
        readonly_token="",
        key_pepper="",
        demo=True,
        demo_upstream=False,
        grace_s=5.0,
    )
    given = dict(word.split("=", 1) for word in sys.argv[2:])
    options = replace(options, **{name: json.loads(value) for name, value in given.items()})
    parts = Parts(
        gateway=(*stand_in, "gateway"),
        keeper=(*stand_in, "keeper"),
        demo_upstream=lambda port: (sys.executable, "-m", "gateway", "demo-upstream", str(port), "--worker"),
        settings_line=settings_line,
        prepare=lambda: None,
        migrate=lambda url: None,
    )
    logs.configure()
    return run_up(options, parts, JsonVoice(logs.logger("tollkeeper.up")))


if __name__ == "__main__":
    sys.exit(main())
