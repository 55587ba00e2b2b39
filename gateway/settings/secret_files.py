"""Secrets that files say: `NAME_FILE` is the path of a file whose content is the value of `NAME`.

What such a file holds stands in no message: its path does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gateway.errors import SettingError
from gateway.files import SECRET_BYTES_MAX, read_regular

SUFFIX = "_FILE"


class Environment(Mapping[str, str]):
    """The environment, in which a file may say what a variable would. `files` are those that were read."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self.files: dict[str, None] = {}

    def __getitem__(self, name: str) -> str:
        """Return the value of a variable, or what the file of its `_FILE` holds; `SettingError` for both."""
        path = self._variables.get(name + SUFFIX)
        if not path:
            return self._variables[name]
        if self._variables.get(name):
            raise both_set(name, name + SUFFIX)
        return self.read(name + SUFFIX, path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def read(self, place: str, path: str) -> str:
        """Return the content of a file, as `read_secret` does, and add the path to `files`."""
        self.files[path] = None
        return read_secret(place, path)

    def named(self, settings: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        """Return the files that were read, each with its setting; empty for the file of a variable."""
        names = {path: name for name, path in settings.items()}
        return tuple((names.get(path, ""), path) for path in self.files)


def both_set(variable: str, file: str) -> SettingError:
    """Return the error of a value that is stated twice."""
    return SettingError(f"{variable} and {file} are both set: expected one of them")


def read_secret(place: str, path: str) -> str:
    """Return the one line of a file, without its end; `SettingError` names `place` and the file."""
    try:
        data = read_regular(path, SECRET_BYTES_MAX)
    except (OSError, ValueError) as error:  # a path with NUL is a ValueError
        why = error.strerror if isinstance(error, OSError) else "no path"
        raise SettingError(f"{place}={path!r} cannot be read: {why}") from error
    fault = _fault(data)
    if fault:
        raise SettingError(f"{place}={path!r} {fault}")
    return data.decode().rstrip("\r\n")


def _fault(data: bytes) -> str:
    """Return the fault of a file's content, in words that do not show it; empty where it is well."""
    if len(data) > SECRET_BYTES_MAX:
        return f"is larger than {SECRET_BYTES_MAX} bytes"
    if not data.strip(b"\r\n"):
        return "is empty"
    if b"\0" in data:
        return "holds a NUL byte: expected text"
    if len(data.rstrip(b"\r\n").splitlines()) > 1:
        return "holds more than one line"
    try:
        data.decode()
    except UnicodeDecodeError:
        return "is no text in UTF-8"
    return ""
