import sqlalchemy as sa
from alembic import op

revision = "1_entries"
down_revision = None


def upgrade():
    op.create_table(
        "entry",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("text", sa.String(200), nullable=False),
        sa.Column("words", sa.Integer()),
    )


def downgrade():
    op.drop_table("entry")
