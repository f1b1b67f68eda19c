from board import db
from board.models import Post
from board.sequences import PublishPost
from flask import Blueprint, request

board = Blueprint("board", __name__)


@board.post("/posts")
def create():
    from board.tasks import count_words  # it imports the application

    post = Post(text=request.form["text"])
    db.session.add(post)
    db.session.commit()
    count_words.delay(post.id)
    return {"id": post.id}, 201


@board.post("/published")
def publish():
    run = PublishPost.start(text=request.form["text"])
    db.session.commit()
    return {"run": run.id}, 202


@board.get("/posts/<int:post_id>")
def show(post_id):
    post = db.get_or_404(Post, post_id)
    return {"text": post.text, "words": post.words}
