"""What goes wrong in a storm, by a seed, and when it did."""

from __future__ import annotations

import random
import threading
import time
import typing as t
from dataclasses import dataclass

if t.TYPE_CHECKING:
    from tests.storm.crew import Crew
    from tests.storm.place import Options, Place
    from tests.storm.servers import Broker, Database
    from tests.storm.strangers import Strangers
    from tests.support.hosts import Host

KILLS = {"child": 16, "worker": 2, "main": 1, "stop": 1}
"""What happens to a process, and how often of 20: most kills are those of a child."""
EXTRA_SECONDS = 1.0
"""How long beyond lease and sweep a worker is stopped, or cut off."""
CUTS = ("database cut", "broker host", "worker cut", "database host", "broker cut")
"""What happens to links, in turn: cut for a while, or until another host is at the address."""


@dataclass
class Fault:
    """Something that was done, from when to when."""

    kind: str
    target: str
    at: float
    until: float


@dataclass(frozen=True)
class Planned:
    """Something to be done, some seconds after the beginning."""

    at: float
    kind: str
    seconds: float = 0.0
    """How long it takes."""


def stop_seconds(options: Options) -> float:
    """Give how long a worker is stopped: so long that others take over what it held.

    :param options: The storm's.
    """
    return options.lease + options.sweep + EXTRA_SECONDS


def plan_kills(options: Options) -> list[Planned]:
    """Give what happens to processes: the same for the same seed.

    :param options: The storm's.
    """
    chance = random.Random(f"{options.seed} kills")
    kinds, weights = list(KILLS), list(KILLS.values())
    plan, stopped_until = [], 0.0
    count = int(options.seconds / options.kill_every) if options.kill_every else 0
    for number in range(1, count + 1):
        at = number * options.kill_every
        (kind,) = chance.choices(kinds, weights)
        if kind == "stop":  # one at a time, and ended before the storm
            until = at + stop_seconds(options)
            if at < stopped_until or until > options.seconds or options.workers == 1:
                kind = "child"
            else:
                stopped_until = until
        if kind == "child" and options.pool != "prefork":
            kind = "worker"
        plan.append(Planned(at, kind))
    return plan


def plan_servers(options: Options) -> list[Planned]:
    """Give what happens to broker and database, each spread over the storm.

    :param options: The storm's.
    """
    chance = random.Random(f"{options.seed} servers")
    counts = {
        "flush": options.flushes,
        "broker": options.broker_restarts,
        "database": options.database_restarts,
    }
    plan = [
        Planned(options.seconds * (number + chance.uniform(0.2, 0.8)) / count, kind)
        for kind, count in counts.items()
        for number in range(count)
    ]
    return sorted(plan, key=lambda planned: planned.at)


def plan_cuts(options: Options) -> list[Planned]:
    """Give what happens to links: each kind in turn, for a short time or a longer one.

    A worker is cut off for so long that others take over what it held.

    :param options: The storm's.
    """
    if not options.partition:
        return []
    chance = random.Random(f"{options.seed} cuts")
    first, plan = chance.randrange(len(CUTS)), []
    for number in range(1, int(options.seconds / options.cut_every) + 1):
        kind = CUTS[(first + number) % len(CUTS)]
        seconds = chance.uniform(0.1, 0.8) * options.cut_every
        if kind == "worker cut":
            seconds = stop_seconds(options)
        plan.append(Planned(number * options.cut_every, kind, seconds))
    return plan


class Nemesis:
    """Does it.

    :param place: The storm.
    :param crew: The workers.
    :param database: The database.
    :param broker: The broker.
    :param strangers: Those who refer to runs.
    :param working: The hosts of the workers, whose links can be cut.
    """

    def __init__(
        self,
        place: Place,
        crew: Crew,
        database: Database,
        broker: Broker,
        strangers: Strangers,
        working: t.Sequence[Host] = (),
    ) -> None:
        self.place, self.crew = place, crew
        self.hosts = {"database": database.server, "broker": broker.server}
        self.working = working
        self.chance = random.Random(f"{place.options.seed} victims")
        self.servers: dict[str, t.Callable[[], object]] = {
            "flush": broker.flush,
            "broker": broker.restart,
            "database": database.restart,
        }
        self.faults = strangers.faults  # theirs are among all others
        self.errors: list[str] = []
        plan = plan_servers(place.options)
        brokers = [planned for planned in plan if planned.kind != "database"]
        databases = [planned for planned in plan if planned.kind == "database"]
        works = [
            (self.harm_processes, plan_kills(place.options)),
            (self.harm_servers, brokers),
            (self.harm_servers, databases),
        ]
        # Each in a thread: one may last until after the next one has begun.
        works += [(strangers.act, plan) for plan in strangers.plans]
        works += [(self.harm_links, [planned]) for planned in plan_cuts(place.options)]
        self.threads = [
            threading.Thread(target=self.guard, args=args, daemon=True) for args in works
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self.threads:
            thread.start()

    @property
    def is_done(self) -> bool:
        """Whether all has happened, and all servers and workers run again."""
        return not any(thread.is_alive() for thread in self.threads)

    @property
    def last_fault(self) -> float:
        """When the last one was over."""
        return max((fault.until for fault in self.faults), default=self.place.began)

    def guard(self, harm: t.Callable[[list[Planned]], None], plan: list[Planned]) -> None:
        """Keep what a thread dies of: a storm that has lost its nemesis proves nothing."""
        try:
            harm(plan)
        except Exception as error:
            self.errors.append(f"{harm.__name__}: {type(error).__name__}: {error}")

    def wait_for(self, planned: Planned) -> None:
        """Wait until it is time."""
        time.sleep(max(0.0, self.place.began + planned.at - time.time()))

    def harm_servers(self, plan: list[Planned]) -> None:
        """Flush and restart."""
        for planned in plan:
            self.wait_for(planned)
            at = time.time()
            self.servers[planned.kind]()
            self.faults.append(Fault(planned.kind, planned.kind, at, time.time()))

    def harm_processes(self, plan: list[Planned]) -> None:
        """Kill and stop; what is stopped goes on when its time has come.

        Only a worker that is up is harmed: one that only starts holds nothing, and on a busy
        machine none would ever get so far.
        """
        sleeper: tuple[int, Fault] | None = None
        for planned in plan:
            self.wait_for(planned)
            if sleeper is not None and time.time() >= sleeper[1].until:
                self.wake(*sleeper)
                sleeper = None
            self.crew.refill()
            if slots := self.crew.busy_slots():
                slot = self.chance.choice(slots)
                fault = self.harm(planned.kind, slot)
                self.faults.append(fault)
                if fault.kind == "stop":
                    sleeper = (slot, fault)
        if sleeper is not None:
            time.sleep(max(0.0, sleeper[1].until - time.time()))
            self.wake(*sleeper)

    def harm_links(self, plan: list[Planned]) -> None:
        """Cut a host off without a word; mend it, or put another one at its address."""
        for planned in plan:
            where, _, what = planned.kind.partition(" ")
            server = self.hosts.get(where)
            self.wait_for(planned)
            host = self.chance.choice(self.working) if server is None else server.host
            assert host is not None
            at = time.time()
            host.cut()
            if what == "host" and server is not None:
                server.kill()
                host.replace()
            time.sleep(planned.seconds)
            if what == "host" and server is not None:
                server.start()
            host.mend()
            self.faults.append(Fault(planned.kind, host.name, at, time.time()))

    def wake(self, slot: int, fault: Fault) -> None:
        """Let a worker go on."""
        self.crew.resume(slot)
        fault.until = time.time()

    def harm(self, kind: str, slot: int) -> Fault:
        """Harm one process of a worker."""
        at = time.time()
        until = None
        if kind == "child":
            target = self.crew.kill_child(slot, self.chance.choice)
        elif kind == "stop":
            target = self.crew.stop(slot)
            until = at + stop_seconds(self.place.options)
        elif kind == "main":
            target = self.crew.kill_main(slot)
        else:
            target = self.crew.kill_worker(slot)
        return Fault(kind, target, at, until or time.time())
