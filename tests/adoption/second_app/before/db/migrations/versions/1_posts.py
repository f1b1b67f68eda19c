import sqlalchemy as sa
from alembic import op

revision = "1_posts"
down_revision = None


def upgrade():
    op.create_table(
        "post",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("text", sa.String(200), nullable=False),
        sa.Column("words", sa.Integer()),
    )


def downgrade():
    op.drop_table("post")
