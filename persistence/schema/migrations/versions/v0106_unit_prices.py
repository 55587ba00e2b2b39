"""Prices of units beside tokens."""

from alembic import op

revision = "0106"
down_revision = "0105"
alters = ("price",)
runs_from = "0100"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE price
    ADD COLUMN images jsonb CHECK (jsonb_typeof(images) = 'object'),
    ADD COLUMN audio_second numeric CHECK ((audio_second >= 0) AND (scale(audio_second) <= 9)),
    ADD COLUMN video_second numeric CHECK ((video_second >= 0) AND (scale(video_second) <= 9)),
    ADD COLUMN "character" numeric CHECK (("character" >= 0) AND (scale("character") <= 9)),
    ADD COLUMN page numeric CHECK ((page >= 0) AND (scale(page) <= 9)),
    ADD COLUMN search numeric CHECK ((search >= 0) AND (scale(search) <= 9)),
    ADD COLUMN container numeric CHECK ((container >= 0) AND (scale(container) <= 9));
"""


def upgrade() -> None:
    """Add the columns."""
    op.execute(_STATEMENTS)
