"""Secrets in files: `NAME_FILE` is the path of a file that contains the value of `NAME`.

Messages show the path of such a file, and never its content.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gateway.errors import SettingError
from gateway.files import SECRET_BYTES_MAX, read_regular
from gateway.settings.controls import refuse_controls

SUFFIX = "_FILE"


class Environment(Mapping[str, str]):
    """The environment, with files as values of variables `NAME_FILE`. `files` are those that were read."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self.files: dict[str, None] = {}

    def __getitem__(self, name: str) -> str:
        """Return a variable's value, or the content of its `_FILE`.

        Raise `SettingError` if both are set, or if the value has a control character.
        """
        path = self._variables.get(name + SUFFIX)
        if not path:
            value = self._variables[name]
            refuse_controls(name, value)
            return value
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
        """Return (setting, path) of each secret file that was read; `settings` has the path by setting.

        The setting is empty if the file contains the value of another variable.
        """
        names = {path: name for name, path in settings.items()}
        return tuple((names.get(path, ""), path) for path in self.files)


def both_set(variable: str, file: str) -> SettingError:
    """Return the error for a secret that is given twice: in `variable`, and in the file that `file` names."""
    return SettingError(f"{variable} and {file} are both set: expected one of them")


def read_secret(place: str, path: str) -> str:
    """Return the only line of a secret's file, without its line end.

    Raise `SettingError`, which names the setting `place` and the path, if the content is not valid.
    """
    try:
        data = read_regular(path, SECRET_BYTES_MAX)
    except (OSError, ValueError) as error:  # a path with NUL is a ValueError
        why = error.strerror if isinstance(error, OSError) else "no path"
        raise SettingError(f"{place}={path!r} cannot be read: {why}") from error
    fault = _fault(data)
    if fault:
        raise SettingError(f"{place}={path!r} {fault}")
    text = data.decode().rstrip("\r\n")
    refuse_controls(f"what {place}={path!r} holds", text)
    return text


def _fault(data: bytes) -> str:
    """Return the fault of a file's content, in words that do not show it; empty if it is valid."""
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
