from board import celery, create_app, db
from board.models import Post

app = create_app()


@celery.task(ignore_result=True)
def count_words(post_id):
    with app.app_context():
        post = db.session.get(Post, post_id)
        post.words = len(post.text.split())
        db.session.commit()
