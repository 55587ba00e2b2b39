"""The list of all families. A new family is its own file, and an entry here."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.core.families import anthropic, bedrock, cohere, gemini, generic, mcp, ollama, openai
from gateway.core.families.family import ApiFamily, BatchPaths, CallKind, JobPaths, ObjectLists
from gateway.core.model import Family

# In the order in which paths are tried: the most specific first.
ALL: tuple[ApiFamily, ...] = (
    gemini.FAMILY, anthropic.FAMILY, openai.FAMILY, bedrock.FAMILY, cohere.FAMILY, ollama.FAMILY,
    mcp.FAMILY, generic.FAMILY,
)  # fmt: skip

FAMILIES: dict[Family, ApiFamily] = {family.name: family for family in ALL}
SHAPES: dict[str, CallKind] = {meter: shape for family in ALL for meter, shape in family.shapes.items()}
BATCHES: tuple[BatchPaths, ...] = tuple([paths for family in ALL for paths in family.batches])
BATCH_AT: Mapping[str, BatchPaths] = {
    path: batch
    for batch in BATCHES
    for path in (batch.files, batch.batches, batch.one, batch.cancel, batch.results, *batch.makers)
    if path
}
LISTS: tuple[ObjectLists, ...] = tuple([family.objects.lists for family in ALL if family.objects.lists])
JOBS: Mapping[str, JobPaths] = {
    path: jobs for family in ALL for jobs in family.jobs for path in (jobs.path, jobs.remake) if path
}
# Paths of jobs that the gateway answers itself: one job, all batches, and those that make one.
_SHOWN = (
    *((paths.one, paths.cancel, paths.results) for paths in BATCHES),
    *((paths.one, paths.cancel, paths.results) for paths in JOBS.values()),
)
OF_JOBS = frozenset({path for paths in _SHOWN for path in paths if path})
BATCH_COLLECTIONS = frozenset({paths.batches for paths in BATCHES})
BATCH_MAKERS = frozenset({path for paths in BATCHES for path in paths.makers})
REMAKERS = frozenset({paths.remake for paths in JOBS.values() if paths.remake})
# Paths of the results of jobs.
RESULTS = frozenset({batch.results for batch in BATCHES} | {job.results for job in JOBS.values()}) - {""}
OF_METER: dict[str, ApiFamily] = {meter: family for family in ALL for meter in family.shapes}
# The family whose clients send a header, the surest first: a version or an SDK, then a header for keys that
# only this family has.
SPEAKERS: Mapping[bytes, Family] = {
    **{
        family.spoken_by: family.name
        for family in sorted(ALL, key=lambda family: family.spoken_by)
        if family.spoken_by
    },
    **{name: family.name for family in ALL for name in family.credentials if name != b"authorization"},
}
