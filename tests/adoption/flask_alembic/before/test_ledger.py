import pytest
from ledger import Entry, create_app, db


@pytest.fixture
def app():
    celery = {"broker_url": "memory://", "task_always_eager": True}
    app = create_app(TESTING=True, SQLALCHEMY_DATABASE_URI="sqlite:///test.db", CELERY=celery)
    with app.app_context():
        db.drop_all()
        db.create_all()
    return app


def test_words_are_counted(app):
    answer = app.test_client().post("/entries", data={"text": "three short words"})
    assert answer.status_code == 201
    with app.app_context():
        assert db.session.get(Entry, answer.json["id"]).words == 3
