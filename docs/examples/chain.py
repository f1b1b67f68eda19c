"""An order, as a Celery chain."""

import services
from celery import Celery, Task, chain, shared_task
from flask import Flask, request
from flask_sqlalchemy import SQLAlchemy

db = SQLAlchemy()


class Order(db.Model):
    id = db.Column(db.Integer, primary_key=True)
    email = db.Column(db.String(254))
    amount = db.Column(db.Integer)
    state = db.Column(db.String(20), default="new")
    charge_id = db.Column(db.String(80))


@shared_task
def reserve(order_id):
    order = db.session.get_one(Order, order_id)
    order.state = "reserved"
    db.session.commit()
    return order_id


@shared_task(autoretry_for=(OSError,), retry_backoff=True, max_retries=10)
def charge(order_id):
    order = db.session.get_one(Order, order_id)
    order.charge_id = services.charge(order.amount, key=f"order-{order_id}")
    order.state = "paid"
    db.session.commit()
    return order_id


@shared_task(autoretry_for=(OSError,), retry_backoff=True, max_retries=10)
def confirm(order_id):
    order = db.session.get_one(Order, order_id)
    services.send_mail(order.email, f"Thank you for order {order.id}")


@shared_task
def give_up(request, exc, traceback, order_id):
    order = db.session.get_one(Order, order_id)
    order.state = "failed"
    db.session.commit()


def create_app(database="sqlite:///orders.db", **celery_settings):
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = database
    db.init_app(app)

    class ContextTask(Task):
        def __call__(self, *args, **kwargs):
            with app.app_context():
                return self.run(*args, **kwargs)

    celery = Celery(app.name, task_cls=ContextTask)
    celery.config_from_object(celery_settings)
    celery.set_default()
    app.extensions["celery"] = celery

    @app.post("/orders")
    def place_order():
        order = Order(email=request.form["email"], amount=int(request.form["amount"]))
        db.session.add(order)
        db.session.commit()
        # Killed here, or with the broker down, the order is never worked on.
        tasks = chain(reserve.s(order.id), charge.s(), confirm.s())
        tasks.apply_async(link_error=give_up.s(order.id))
        return {"order": order.id}, 202

    return app
