"""The same order, as a sequence."""

import services
from flask import Flask, request
from flask_sqlalchemy import SQLAlchemy

from flask_sequence import BaseSequence, Sequence, Step

db = SQLAlchemy()


class Order(db.Model):
    id = db.Column(db.Integer, primary_key=True)
    email = db.Column(db.String(254))
    amount = db.Column(db.Integer)
    state = db.Column(db.String(20), default="new")
    charge_id = db.Column(db.String(80))


class Reserve(Step):
    def perform(self):
        order = db.session.get_one(Order, self.data["order_id"])
        order.state = "reserved"


class Charge(Step):
    autoretry_for = (OSError,)
    max_retries = 10

    def perform(self):
        # The call comes first: no transaction is open while it takes its time.
        charge_id = services.charge(self.data["amount"], key=self.idempotency_key)
        order = db.session.get_one(Order, self.data["order_id"])
        order.charge_id, order.state = charge_id, "paid"


class Confirm(Step):
    autoretry_for = (OSError,)
    max_retries = 10

    def perform(self):
        order = db.session.get_one(Order, self.data["order_id"])
        services.send_mail(order.email, f"Thank you for order {order.id}")


class PlaceOrder(BaseSequence):
    steps = (Reserve, Charge, Confirm)


def create_app(database="sqlite:///orders.db", **celery_settings):
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = database
    app.config["CELERY"] = celery_settings
    db.init_app(app)
    Sequence(app)

    @app.post("/orders")
    def place_order():
        order = Order(email=request.form["email"], amount=int(request.form["amount"]))
        db.session.add(order)
        db.session.flush()
        PlaceOrder.start(order_id=order.id, amount=order.amount)
        db.session.commit()  # the order and its run, or neither
        return {"order": order.id}, 202

    return app
