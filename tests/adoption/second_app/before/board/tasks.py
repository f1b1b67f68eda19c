import os

from board import create_app, db
from board.models import Post
from celery import Celery

app = create_app()

celery = Celery("board", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))


@celery.task(ignore_result=True)
def count_words(post_id):
    with app.app_context():
        post = db.session.get(Post, post_id)
        post.words = len(post.text.split())
        db.session.commit()
