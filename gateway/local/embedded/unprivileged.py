"""Runs a program as an existing unprivileged user, if the current user is root.

PostgreSQL refuses to run as root. No user is created: `postgres` or `nobody` is used. If a directory above
the binaries or the data is closed to this user (a checkout under `/root`), the program keeps exactly one
capability in its ambient set, for passing closed directories.

Run as a script, this file drops root and replaces itself by the program, with the same process id:
`unprivileged.py UID GID CAPABILITY|- PROGRAM ARGUMENT…`.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

USERS = ("postgres", "nobody", "daemon")
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
PR_SET_KEEPCAPS = 8
PR_SET_SECUREBITS = 28
SECBIT_NO_SETUID_FIXUP = 1 << 2
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAPABILITY_VERSION_3 = 0x20080522


@dataclass(frozen=True, slots=True)
class UnprivilegedUser:
    """The user to run a program as, and the capability for passing closed directories, if needed."""

    name: str
    uid: int
    gid: int
    capability: int | None = None

    def command(self, argv: list[str]) -> list[str]:
        """Return the command line that runs `argv` as this user; the process id stays the same."""
        capability = "-" if self.capability is None else str(self.capability)
        launcher = [sys.executable, "-I", "-S", __file__, str(self.uid), str(self.gid), capability]
        return [*launcher, *argv]


def borrow(owner_uid: int | None, reaches: list[Path]) -> UnprivilegedUser | None:
    """Return the user as whom programs run that must not run as root; None if this process is not root.

    It is the user with the id `owner_uid`, which owns existing data, or a default one. Raise
    `PermissionError` if the user cannot open the directories `reaches`.
    """
    if os.geteuid() != 0:
        return None
    user = _user(owner_uid)
    closed = next((path for reach in reaches if (path := _closed_directory(reach, user)) is not None), None)
    if closed is None:
        return UnprivilegedUser(user.pw_name, user.pw_uid, user.pw_gid)
    held = _effective_capabilities()
    for capability in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE):
        if held >> capability & 1:
            return UnprivilegedUser(user.pw_name, user.pw_uid, user.pw_gid, capability)
    raise PermissionError(f"the user {user.pw_name} cannot pass the directory {closed}")


def _user(owner_uid: int | None) -> pwd.struct_passwd:
    """Return the user that owns the files, or the first of `USERS` that exists."""
    if owner_uid:
        try:
            return pwd.getpwuid(owner_uid)
        except KeyError:
            return pwd.struct_passwd((str(owner_uid), "x", owner_uid, owner_uid, "", "/", "/bin/false"))
    for name in USERS:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        if user.pw_uid != 0:
            return user
    raise PermissionError(f"none of the users {', '.join(USERS)} exists here")


def _closed_directory(path: Path, user: pwd.struct_passwd) -> Path | None:
    """Return the first directory on the way to `path` that a user cannot enter, or None."""
    resolved = path.resolve()
    for directory in (*reversed(resolved.parents), resolved):
        try:
            found = directory.stat()
        except OSError:
            return directory
        if not stat.S_ISDIR(found.st_mode):
            continue
        if found.st_uid == user.pw_uid:
            passable = found.st_mode & stat.S_IXUSR
        elif found.st_gid == user.pw_gid:
            passable = found.st_mode & stat.S_IXGRP
        else:
            passable = found.st_mode & stat.S_IXOTH
        if not passable:
            return directory
    return None


def _effective_capabilities() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def become(uid: int, gid: int, capability: int | None) -> None:
    """Drop root for good; keep the `capability` across `exec` if given."""
    libc = ctypes.CDLL(None, use_errno=True)
    if capability is not None:
        # Without this bit access(2), with which PostgreSQL checks for its programs, ignores capabilities.
        _demand(libc.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0))
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    if capability is not None:
        _demand(libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setresuid(uid, uid, uid)
    if capability is None:
        return
    mask = 1 << capability
    header = _Header(CAPABILITY_VERSION_3, 0)
    sets = (_Sets * 2)(_Sets(mask, mask, mask), _Sets(0, 0, 0))
    _demand(libc.capset(ctypes.byref(header), ctypes.byref(sets)))
    _demand(libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0))


def _demand(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    _uid, _gid, _capability, *_argv = sys.argv[1:]
    become(int(_uid), int(_gid), None if _capability == "-" else int(_capability))
    os.execv(_argv[0], _argv)  # noqa: S606  # this process becomes the program
