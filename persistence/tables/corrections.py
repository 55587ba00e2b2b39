"""Use that did not pass the gateway, and what calls are charged besides what they settled."""

from sqlalchemy import PrimaryKeyConstraint, UniqueConstraint

from persistence.tables.columns import (
    flags,
    identity,
    integers,
    moments,
    refers,
    table,
    texts,
    uuids,
)

# Use that did not pass the gateway: `request_id` is its call in journal and ledgers.
use_event = table(
    "use_event",
    identity(),
    texts("source", "event_id", "type"),
    refers("organization_id", "organization"),
    refers("tenant_id", "tenant"),
    refers("service_id", "service"),
    uuids("request_id"),
    moments("used_at"),
    # Of a cycle that was over when it came.
    integers("late_tokens"),
    texts("actor"),
    moments("created_at"),
    # The organization whose own caller told it; 0 told for any.
    integers("teller"),
    # Of the cycle that ran, where it was used before the tenant was changed.
    integers("quota_tokens"),
    UniqueConstraint("teller", "source", "event_id"),
    UniqueConstraint("request_id"),
)

# What calls were charged, taken back (IN) or added to (OUT): once each.
amendment = table(
    "amendment",
    identity(),
    uuids("request_id"),
    refers("organization_id", "organization"),
    refers("tenant_id", "tenant"),
    integers("service_id?"),
    moments("used_at"),
    integers("tokens", "credits", "units"),
    flags("in_money"),
    integers("late_tokens"),
    texts("reason", "actor", "direction"),
    moments("created_at"),
    # Of the cycle that ran.
    integers("quota_tokens"),
    # When what it corrects came into the ledger, of an event.
    moments("counted_at?"),
    UniqueConstraint("request_id"),
)

# Calls that were rated again: once by each price.
rerating = table(
    "rerating",
    identity(),
    integers("price_id"),
    uuids("request_id"),
    refers("organization_id", "organization"),
    refers("tenant_id", "tenant"),
    integers("service_id", "cost_before", "cost_after", "charged"),
    texts("currency", "reason", "actor"),
    moments("created_at"),
    UniqueConstraint("price_id", "request_id"),
)

# Prices that are about more calls than are rated again at once: up to which one that is done.
rerating_left = table(
    "rerating_left",
    refers("price_id", "price"),
    integers("after_id"),
    texts("actor"),
    moments("created_at"),
    PrimaryKeyConstraint("price_id"),
)
