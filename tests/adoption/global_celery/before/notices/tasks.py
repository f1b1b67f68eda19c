from notices import app, celery, db
from notices.models import Notice


@celery.task
def count_words(notice_id):
    with app.app_context():
        notice = db.session.get(Notice, notice_id)
        notice.words = len(notice.text.split())
        db.session.commit()
