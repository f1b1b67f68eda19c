import os
import time

from board import db
from board.models import Post
from flask_sequence import BaseSequence, step


@step
def publish(data):
    post = Post(text=data["text"])
    db.session.add(post)
    db.session.flush()
    data["post_id"] = post.id


@step
def translate(data):
    db.session.add(Post(text=f"{data['text']} (translated)"))
    db.session.flush()
    time.sleep(float(os.environ.get("TRANSLATION_SECONDS", "0")))  # a slow service


@step
def announce(data):
    db.session.add(Post(text=f"{data['text']} (announced)"))


class PublishPost(BaseSequence):
    steps = (publish, translate, announce)
