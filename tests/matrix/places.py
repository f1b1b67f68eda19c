"""Private servers that stand between an application and its database or broker, or secure them."""

from __future__ import annotations

import subprocess
import typing as t

import sqlalchemy as sa

from tests.support.servers import RedisServer, Server
from tests.support.services import POSTGRESQL


class PgBouncer(Server):
    """PgBouncer in transaction mode before the PostgreSQL server of the tests."""

    program = "pgbouncer"
    user = "postgres"

    @property
    def url(self) -> str:  # type: ignore[override]
        """The address of the same database through it."""
        return self.through(POSTGRESQL)

    def through(self, url: str) -> str:
        """Give the address of a database through it.

        :param url: Its own address.
        """
        there = sa.make_url(url).set(host="127.0.0.1", port=self.port)
        return there.render_as_string(hide_password=False)

    def prepare(self) -> None:
        """Write its configuration."""
        server = sa.make_url(POSTGRESQL)
        (self.folder / "pgbouncer.ini").write_text(
            "[databases]\n"
            f"* = host={server.host} port={server.port} user={server.username}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            "auth_type = any\npool_mode = transaction\ndefault_pool_size = 10\n"
        )
        self._give_away()

    def command(self) -> list[str]:
        """Give the command."""
        return ["pgbouncer", "pgbouncer.ini"]


class SecretRedis(RedisServer):
    """Redis with a user who may do what an application needs, and no more."""

    @property
    def remote_url(self) -> str:  # type: ignore[override]
        """The address with the user's password."""
        return f"redis://app:secret@{self.address}:{self.port}/0"

    def command(self) -> list[str]:
        """Give the command."""
        rules = ("on", ">secret", "~*", "&*", "+@all", "-@admin", "-@dangerous", "+info", "+keys")
        off = ("--user", "default", "off")
        return [*super().command(), *off, "--user", "app", *rules]


class TLSRedis(RedisServer):
    """Redis that is reached by TLS alone."""

    @property
    def remote_url(self) -> str:  # type: ignore[override]
        """The address, with the authority by which the certificate is checked."""
        checked = f"ssl_cert_reqs=required&ssl_ca_certs={self.folder / 'cert.pem'}"
        return f"rediss://127.0.0.1:{self.port}/0?{checked}"

    def prepare(self) -> None:
        """Make a certificate."""
        self._run(
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", "key.pem", "-out", "cert.pem"),
        )

    def command(self) -> list[str]:
        """Give the command."""
        files = ("--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem")
        trusted = ("--tls-ca-cert-file", "cert.pem", "--tls-auth-clients", "no")
        plain = super().command()
        plain[plain.index("--port") + 1] = "0"
        return [*plain, "--tls-port", str(self.port), *files, *trusted]


class ReplicaRedis(RedisServer):
    """Redis that follows another one.

    :param main: The other one.
    """

    def __init__(self, main: RedisServer) -> None:
        super().__init__()
        self._main = main

    def command(self) -> list[str]:
        """Give the command."""
        return [*super().command(), "--replicaof", "127.0.0.1", str(self._main.port)]


class Sentinel(Server):
    """Redis Sentinel, which lets a replica follow a server that is gone.

    :param main: The server that it watches, which has a replica.
    """

    program = "redis-server"
    name = "main"

    def __init__(self, main: RedisServer) -> None:
        super().__init__()
        self._main = main

    @property
    def url(self) -> str:  # type: ignore[override]
        """Its own address, as a Redis server's."""
        return f"redis://127.0.0.1:{self.port}/0"

    def celery(self) -> dict[str, t.Any]:
        """Give the settings of Celery with which it is asked where the server is."""
        return {
            "broker_url": f"sentinel://127.0.0.1:{self.port}/0",
            "broker_transport_options": {"master_name": self.name},
        }

    def prepare(self) -> None:
        """Write its configuration, which it changes itself."""
        (self.folder / "sentinel.conf").write_text(
            f"port {self.port}\n"
            f"sentinel monitor {self.name} 127.0.0.1 {self._main.port} 1\n"
            f"sentinel down-after-milliseconds {self.name} 1000\n"
            f"sentinel failover-timeout {self.name} 3000\n"
        )

    def command(self) -> list[str]:
        """Give the command."""
        return ["redis-server", str(self.folder / "sentinel.conf"), "--sentinel"]

    def knows_replica(self) -> bool:
        """Tell whether there is a replica that may take over."""
        asked = ("redis-cli", "-p", str(self.port), "sentinel", "replicas", self.name)
        done = subprocess.run(asked, capture_output=True, text=True, check=True)
        return "master-link-status\nok" in done.stdout


class SQS(Server):
    """What speaks as Amazon's SQS does: moto's server."""

    program = "moto_server"

    @property
    def url(self) -> str:  # type: ignore[override]
        """Its address."""
        return f"http://127.0.0.1:{self.port}/"

    def celery(self) -> dict[str, t.Any]:
        """Give the settings of Celery."""
        return {
            "broker_url": f"sqs://key:secret@127.0.0.1:{self.port}//",
            "broker_transport_options": {
                "region": "eu-central-1",
                "is_secure": False,
                "polling_interval": 0.2,
                "wait_time_seconds": 1,
            },
        }

    def command(self) -> list[str]:
        """Give the command."""
        return ["moto_server", "-H", "127.0.0.1", "-p", str(self.port)]

    def _has_answered(self) -> bool:
        return "Running on" in self.log.read_text("utf-8")
