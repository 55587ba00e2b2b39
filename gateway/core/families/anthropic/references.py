"""Fields of this API that refer to stored objects, and fields that end like an id and do not."""

from __future__ import annotations

from typing import Final

from gateway.core.families.references import OF_CALLERS, names

OTHERS: Final = OF_CALLERS | names(
    # Calls of tools by other tools, and pages and downloads of a caller's own browser.
    "custom_tool_use_id tool_id tab_id download_id"
)
NAMED: Final = names(
    # what calls name
    "container file_id previous_message_id skill_id plugin_id"
    # of agents
    " agent_id agent_ids deployment_id deployment_ids environment_id environment_ids memory_id"
    " memory_store_id reference_id served_version_id session_ids session_thread_id vault_id"
    " vault_ids"
    # of lists, and of the account: who pays is the operator's to say
    " after_id before_id scope_id actor_ids anthropic_worker_id api_key_id api_key_ids channel_id"
    " claude_tag_user_ids client_id created_by_user_id external_id external_key_id issuer_id marketplace_id"
    " organization_id organization_ids owner_user_id rbac_group_ids service_account_id slack_channel_id"
    " slack_channel_ids slack_workspace_id tenant_id user_ids user_profile_id user_profile_ids workspace_id"
    " workspace_ids"
)
