"""`tollkeeper explain`: the Admin API's explanation of a call's refusal or cost."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from gateway.cli.admin.client import AdminClient, Json
from gateway.cli.admin.output import AsJson, admin, console, escape, print_json


def explain(
    request_id: Annotated[
        UUID, typer.Argument(metavar="REQUEST_ID", help="The answer's x-request-id.", show_default=False)
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Tell step by step why a call was refused, or cost what it cost."""
    with admin() as api:
        steps = _steps(api, str(request_id))
        if as_json:
            print_json({"request_id": str(request_id), "steps": steps})
            return
        out = console()
        for number, step in enumerate(steps, 1):
            mark = " [bold red]REFUSED HERE[/]" if step["refused"] else ""
            title = f"[bold]{number}. {step['step'].capitalize()}[/]"
            out.print(f"{title}  {escape(step['says'])}{mark}", highlight=False, soft_wrap=True)
            for fact in step["facts"]:
                out.print(f"     {escape(fact)}", highlight=False, soft_wrap=True)


def _steps(api: AdminClient, request_id: str) -> list[Json]:
    """Return the steps of a call's explanation from the Admin API, with the names that the command prints."""
    return [
        {
            "step": step["step"],
            "says": step["detail"],
            "facts": step["facts"],
            "refused": step["outcome"] == "refused",
        }
        for step in api.get(f"calls/{request_id}/explanation")["steps"]
    ]
