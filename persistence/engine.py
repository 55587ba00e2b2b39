"""The door to PostgreSQL: one pooled SQLAlchemy engine a process, over psycopg 3.

Server-side prepared statements are off, so that it works through a transaction pooler.
"""

from __future__ import annotations

import psycopg
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from persistence.complaint import complaint, quiet
from persistence.pool import CountedPool, count_failures

POOL_CONNECTIONS_MAX = 10
CONNECT_TIMEOUT_S = 5
POOL_WAIT_S = 10


# For who hands one on and asks it nothing.
Engine = AsyncEngine


def create(
    url: str, *, connections_max: int = POOL_CONNECTIONS_MAX, wait_s: float = POOL_WAIT_S
) -> AsyncEngine:
    """An engine for `postgresql://…`; nothing is connected until it is used."""
    engine = create_async_engine(
        dialect_url(url),
        poolclass=CountedPool,
        pool_size=connections_max,
        max_overflow=0,
        pool_timeout=wait_s,
        pool_pre_ping=True,
        hide_parameters=True,  # values must not reach a log through an error's text
        connect_args={"prepare_threshold": None, "connect_timeout": CONNECT_TIMEOUT_S},
    )
    quiet(engine)
    count_failures(engine)
    return engine


async def answers(engine: AsyncEngine) -> bool:
    """Whether PostgreSQL answers a query now."""
    return not await trouble(engine)


async def trouble(engine: AsyncEngine) -> str:
    """Why PostgreSQL does not answer a query now; empty where it does."""
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
    except (SQLAlchemyError, OSError) as error:
        return complaint(error)
    return ""


async def alive(engine: AsyncEngine) -> bool:
    """Whether PostgreSQL takes a new connection and answers on it, whatever the pool waits for."""
    url = plain_url(engine.url.render_as_string(hide_password=False))
    async with await psycopg.AsyncConnection.connect(url, connect_timeout=CONNECT_TIMEOUT_S) as connection:
        await connection.execute("SELECT 1")
    return True


def dialect_url(url: str) -> str:
    """The same address in SQLAlchemy's spelling, naming psycopg 3."""
    scheme, _, rest = url.partition("://")
    if scheme.split("+")[0] not in ("postgresql", "postgres"):
        raise ValueError(f"not a PostgreSQL address: {scheme}://…")
    return f"postgresql+psycopg://{rest}"


def plain_url(url: str) -> str:
    """The same address as psycopg and libpq read it."""
    # SQLAlchemy writes a blank of a password as it is, which libpq does not take.
    return "postgresql://" + dialect_url(url).partition("://")[2].replace(" ", "%20")
