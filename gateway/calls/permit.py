"""Whether a caller may make a call: its models, user, priority and stored objects.

Prices and limits are no subject of this module.
"""

from __future__ import annotations

from collections.abc import Collection

from gateway.calls.ports import DirectoryPort, ObjectOwnersPort
from gateway.core.calls.call import NO_SIZES, UNSEEN, CallRequest
from gateway.core.calls.estimate import CONTEXT_MAX
from gateway.core.calls.models import ConfiguredModels
from gateway.core.calls.routes import ModelRule
from gateway.core.families.objects import ObjectAccess, continuation_of, field_of
from gateway.core.families.registry import FAMILIES, SHAPES
from gateway.core.model import INTERACTIVE, USER_REQUIRED, Attribution, Caller, on_list
from gateway.errors import (
    CountersUnavailable,
    ModelNotAllowed,
    ObjectNotFound,
    PriorityNotAllowed,
    UserRequired,
)


def check_model_access(  # noqa: PLR0917  # who asks for what, and how it is said that this may not be
    models: ConfiguredModels, directory: DirectoryPort, attribution: Attribution, caller: Caller,
    call: CallRequest, user: str, without_model: str = "", user_field: str = "",
) -> ModelRule | None:  # fmt: skip
    """Check the models, user and priority of a call; return the rule of its configured model or None.

    Raise `UserRequired` if the key requires a user and the field `user_field` names none. Raise
    `ModelNotAllowed` if a model that may answer is not on every list that applies to the call, or is
    configured for other organizations only. A call without a model is refused with the message
    `without_model`, or passes if that is empty.
    """
    if user_field and caller.user_header == USER_REQUIRED and not user:
        raise UserRequired(param=user_field)
    if attribution.priority == INTERACTIVE and caller.priority != INTERACTIVE:
        raise PriorityNotAllowed(
            f"This API key may claim the priority {caller.priority} alone.", param="x-tollkeeper-priority"
        )
    for whose, listed in lists_of(directory, caller, user):
        if call.spec.model or (call.models_beside and not without_model):
            for model in (call.spec.model, *call.models_beside):
                if model and model not in listed and not on_list(model, listed):
                    kind = "tool" if call.spec.mcp.tool else "model"
                    by = call.chosen_by(model) if call.spec.attempts else ""
                    raise ModelNotAllowed(f"This {whose} may not use the {kind} {model}{by}.")
        elif without_model:
            raise ModelNotAllowed(f"This {whose} may use some models alone, and {without_model}.")
    table = models.table()
    if not table.rules or call.spec.mcp.tool:
        return None
    for beside in call.models_beside:  # the upstream may use one of these instead
        table.find(beside, caller.organization_id)
    return table.find(call.spec.model, caller.organization_id) if call.spec.model else None


async def check_objects(
    objects: ObjectOwnersPort, caller: Caller, call: CallRequest, named: tuple[str, ...]
) -> None:
    """Raise `ObjectNotFound` if a call has `named` an object or created model that it may not use.

    A text in a field that no table has must be no object of another organization. Set in `call` the tokens of
    the text that its upstream keeps of the objects, and of the answer that it continues.
    """
    if not (named or call.objects.unsure or call.spec.continues):
        return
    kept = call.objects.named if call.meter in SHAPES else ()
    if call.spec.continues:
        kept = (*kept, continuation_of(call.spec.continues))
    sizes = objects.sizes(caller, kept) if kept else None  # asked with the owners, at the same time
    refused = await objects.refused(caller, named, call.objects.unsure)
    if refused is not None:
        place = field_of(call, refused)
        where = f"The field is {place}." if place else "The path or a header names it."
        raise ObjectNotFound(f"{ObjectNotFound.__doc__} {where}", param=place or None)
    if sizes is not None:
        try:
            known = await sizes
        except CountersUnavailable:
            known = [(0, 0)] * len(kept)
        tokens = [size for _, size in known]
        unseen = (call.spec.continues and not known[-1][0]) or max(tokens) >= CONTEXT_MAX - 1
        document = call.body.document or {}
        # By these fields a provider leaves text out for one answer, so its report is not the size of the whole.
        is_whole = document.get("truncation") in {None, "disabled"} and not document.get("context_management")
        call.note_kept(
            UNSEEN if unseen else sum(tokens), dict(zip(kept, known, strict=True)) if is_whole else NO_SIZES
        )


def named_objects(
    models: ConfiguredModels, owned: ObjectAccess | None, caller: Caller, call: CallRequest, listed: str = ""
) -> tuple[str, ...]:
    """Return the stored objects that a call names, and its models that were created through the API.

    Such a model, perhaps a fine-tuned one, has an owner like other stored objects. Names from the operator's
    configuration are not included. `listed` is a model that the path of a list names.
    """
    rules = FAMILIES[call.family].objects
    if not rules.models or owned is None or not owned.apart:
        return call.objects.named
    begins, asked = rules.models, (call.spec.model, *call.models_beside, listed)
    if call.aim.targets:
        asked = (*asked, *[target.model for target in call.aim.targets])
    made = [name for name in asked if name.lower().startswith(begins)]
    if not made:
        return call.objects.named
    table, whose = models.table(), caller.organization_id
    rule = table.find(call.spec.model, whose) if call.spec.model else None
    written = [] if rule is None else [target.model for target in rule.targets]
    return (
        *call.objects.named,
        *[name for name in made if name not in written and not table.names_itself(name, whose, begins)],
    )


def check_batch_models(  # noqa: PLR0917  # as `check_model_access`
    models: ConfiguredModels, directory: DirectoryPort, attribution: Attribution, caller: Caller,
    call: CallRequest, number: int = 1,
) -> None:  # fmt: skip
    """Check the models of one call of a batch; an error names the call's line `number`."""
    try:
        check_model_access(
            models, directory, attribution, caller, call, caller.acts_for(attribution.user, call.spec.user)
        )
    except ModelNotAllowed as error:
        raise ModelNotAllowed(f"Line {number}: {error.told}") from error


def lists_of(directory: DirectoryPort, caller: Caller, user: str) -> list[tuple[str, Collection[str]]]:
    """Return the model allow-lists for a call, each with its owner's name; a model must be on every list."""
    found: list[tuple[str, Collection[str]]] = []
    if caller.models is not None:
        found.append(("API key", caller.models))
    lists = directory.model_lists(caller)
    if lists is not None:
        found += lists.of(caller.tenant_id, user)
    return found
