import pytest
from board import create_app, db
from board.models import Post


@pytest.fixture
def app():
    app = create_app(TESTING=True, SQLALCHEMY_DATABASE_URI="sqlite://")
    with app.app_context():
        db.create_all()
        yield app


def test_a_post_is_shown(app):
    db.session.add(Post(text="hello"))
    db.session.commit()
    answer = app.test_client().get("/posts/1")
    assert answer.json == {"text": "hello", "words": None}
