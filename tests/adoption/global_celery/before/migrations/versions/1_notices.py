import sqlalchemy as sa
from alembic import op

revision = "1_notices"
down_revision = None


def upgrade():
    op.create_table(
        "notice",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("text", sa.String(200), nullable=False),
        sa.Column("words", sa.Integer()),
    )
    op.create_table(
        "step_run",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("steps", sa.Integer()),
    )


def downgrade():
    op.drop_table("step_run")
    op.drop_table("notice")
