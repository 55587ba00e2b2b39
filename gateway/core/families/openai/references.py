"""Fields of OpenAI's API that refer to stored objects, and fields that end like an id and do not."""

from __future__ import annotations

from typing import Final

from gateway.core.families.references import OF_CALLERS, names

OTHERS: Final = OF_CALLERS | names(
    # The call of a program that made another call, events of a socket, what traces are sorted by; Mistral's
    # agents are the operator's own.
    "caller_id event_id group_id agent_id"
)
NAMED: Final = names(
    # what calls name
    "approval_request_id comparison_response_id container_id conversation_id file_id file_ids input_file_id"
    " item_id part_ids previous_item_id previous_response_id response_id skill_id stream_id tunnel_id"
    " vector_store_id vector_store_ids assistant_id thread_id run_id eval_id delegation_id field_id"
    # of Mistral
    " library_id library_ids from_entry_id document_id"
    # of agents, their sessions, environments and vaults
    " credential_id environment_id environment_template_id subagent_id turn_id vault_id vault_ids"
    # of the account itself: no route leads there
    " actor_ids api_key_ids certificate_ids client_id external_id external_key_id group_ids kms_project_id"
    " model_ids project_id project_ids resource_ids role_id service_account_id subscription_id tenant_id"
    " user_ids workload_identity_pool_id workload_identity_provider_id"
    # a text of these names names one too
    " conversation container training_file validation_file"
)
