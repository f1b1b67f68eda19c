import pytest
from notices import app, celery, db
from notices.models import Notice


@pytest.fixture
def client():
    celery.conf.task_always_eager = True
    with app.app_context():
        db.drop_all()
        db.create_all()
    yield app.test_client()
    celery.conf.task_always_eager = False


def test_words_are_counted(client):
    answer = client.post("/notices", data={"text": "three short words"})
    assert answer.status_code == 201
    with app.app_context():
        assert db.session.get(Notice, answer.json["id"]).words == 3
