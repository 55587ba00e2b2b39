"""What managed services refuse of the commands of Valkey and Redis, by what they publish.

- ElastiCache: https://docs.aws.amazon.com/AmazonElastiCache/latest/dg/ClientConfig.RestrictedCommands.html
- MemoryDB: https://docs.aws.amazon.com/memorydb/latest/devguide/restrictedcommands.html
- Memorystore takes what it lists: https://docs.cloud.google.com/memorystore/docs/valkey/supported-commands
- Azure Managed Redis is Redis Software, and refuses what that does, with its cluster API:
  https://redis.io/docs/latest/operate/rs/references/compatibility/commands/
"""

from __future__ import annotations

_ANYWHERE = (
    "bgrewriteaof",
    "bgsave",
    "config",
    "debug",
    "migrate",
    "replicaof",
    "save",
    "shutdown",
    "slaveof",
)
ELASTICACHE = (*_ANYWHERE, "sync")
MEMORYDB = (
    *ELASTICACHE, "psync", "module", "acl|deluser", "acl|load", "acl|save", "acl|setuser",
    "cluster|addslots", "cluster|delslots", "cluster|setslot",
)  # fmt: skip
MEMORYSTORE = (*MEMORYDB, "acl|dryrun", "acl|genpass", "acl|log", "failover", "replconf", "client|pause")
AZURE = (
    "bgrewriteaof", "bgsave", "debug", "migrate", "replicaof", "save", "shutdown", "slaveof", "sync", "psync",
    "acl|setuser", "acl|log", "client|pause", "client|no-evict", "cluster|shards", "cluster|myid", "failover",
    "lastsave", "replconf", "swapdb", "readonly", "readwrite", "role", "asking",
)  # fmt: skip
SERVICES = {"ElastiCache": ELASTICACHE, "MemoryDB": MEMORYDB, "Memorystore": MEMORYSTORE, "Azure": AZURE}


def user_of_all(*names: str) -> tuple[str, ...]:
    """The rules of a user who may do anything that none of these services refuses."""
    refused = {command for name in names for command in SERVICES[name]}
    return ("on", ">hush", "~*", "&*", "+@all", *(f"-{command}" for command in sorted(refused)))
