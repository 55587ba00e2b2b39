"""What `/readyz` says: whether each dependency is there, and why one is not."""

from __future__ import annotations

from collections.abc import Mapping

# True where it is there, else why not; or False, where its name says it all.
Found = Mapping[str, bool | str]


def there(found: Found) -> dict[str, bool]:
    """Whether each is there."""
    return {name: said is True for name, said in found.items()}


def report(well: bool, found: Found) -> dict[str, object]:
    """The answer, as JSON has it."""
    reasons = {name: said for name, said in found.items() if said and isinstance(said, str)}
    told = {"status": "ok" if well else "unavailable", "dependencies": there(found)}
    return {**told, **({"reasons": reasons} if reasons else {})}
