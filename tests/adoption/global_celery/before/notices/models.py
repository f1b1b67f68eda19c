from notices import db


class Notice(db.Model):
    id = db.Column(db.Integer, primary_key=True)
    text = db.Column(db.String(200), nullable=False)
    words = db.Column(db.Integer)


class StepRun(db.Model):
    """How often somebody went up the stairs; the name is older than any library."""

    id = db.Column(db.Integer, primary_key=True)
    steps = db.Column(db.Integer)
