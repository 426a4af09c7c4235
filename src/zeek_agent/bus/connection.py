"""The connection to the servers of a bus, maintained for as long as the agent runs.

A session with each Zeek cluster that is heard there runs over it (`cluster.py`).
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Final

from zeek_agent import platforms
from zeek_agent.bus import credentials, link, messages, subjects
from zeek_agent.bus.cluster import Cluster, Surroundings
from zeek_agent.bus.cluster_places import CLUSTERS_MAX, Candidate, makes_way
from zeek_agent.bus.messages import BadMessageError, Beacon
from zeek_agent.bus.session import Times
from zeek_agent.bus.subjects import Down
from zeek_agent.errors import UsageError
from zeek_agent.platforms import Platform
from zeek_agent.text import clipped
from zeek_agent.zeek import protocol, tls
from zeek_agent.zeek.connection import (
    SHUTDOWN_TIMEOUT_SECONDS,
)
from zeek_agent.zeek.lasting_connection import ConnectionState, ConnectionStatus, LastingConnection
from zeek_agent.zeek.session import first_to_end

if TYPE_CHECKING:
    from zeek_agent.bus.credentials import BusFiles, User
    from zeek_agent.bus.link import Link, Received
    from zeek_agent.config.sections import BusSettings, ZeekSettings
    from zeek_agent.database.database import SqlDatabase
    from zeek_agent.destination import Destination
    from zeek_agent.identity import Identity
    from zeek_agent.queries.runner import QueryRunner

log = logging.getLogger(__name__)

_DOWN: Final = {kind.value: kind for kind in Down}
AVOIDED_SECONDS: Final = 600.0
"""A server that does not pass on the agent's hellos is the last to be tried for this time."""
NOT_PASSED: Final = (
    "{server} does not pass on hellos of agents of site {site}, though gateways of cluster {cluster} are heard there: "
    "connect the agent to the server of its own site or to a hub, or let that server pass its site, too (`zeek-agent "
    "fleet site`)"
)
NO_EXTRA: Final = (
    "{url} needs the Python packages of the extra `fleet`, which are not installed: pip install 'zeek-agent[fleet]'"
)


class BusConnection(LastingConnection):
    """Keeps the agent connected to a bus. Raises UsageError if the agent's id or installation is not fit for that."""

    def __init__(  # noqa: PLR0917 - those of `ZeekConnection`, and what the bus needs
        self,
        target: Destination,
        bus: BusSettings,
        files: BusFiles,
        settings: ZeekSettings,
        identity: Identity,
        database: SqlDatabase,
        runner: QueryRunner,
        *,
        times: Times | None = None,
        platform: Platform = platforms.HERE,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        require_packages(target)
        subjects.token(identity.agent)
        super().__init__(target, settings, log, clock, monotonic)
        self._bus = bus
        self._files = files
        self._agent_id = identity.agent
        self._times = times or Times()
        group = platform.group
        topics = protocol.subscriptions(identity.agent, settings.groups, group)
        self._surroundings = Surroundings(
            identity, settings, frozenset(topics), database, runner, self._times, set(), clock, monotonic, group
        )
        self._who_replies = self._down_prefix = ""
        """Of the present connection; credentials that are renewed may be those of another site."""
        self._clusters: dict[str, Cluster] = {name: Cluster(name, self._surroundings) for name in bus.clusters}
        self._found: dict[str, Candidate] = {}
        """Clusters that were heard, not named."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failed: asyncio.Future[None] | None = None
        self._link: Link | None = None
        self._user: User | None = None
        self._problems: Counter[str] = Counter()
        self._avoided: dict[str, float] = {}
        """Servers, and until when they are."""
        if target.is_tls and files.tls.insecure:
            log.warning("%s: bus.tls.insecure is set, the servers' certificates are not verified", target)

    @property
    def clusters(self) -> Sequence[Cluster]:
        """The clusters that were named or heard."""
        return tuple(self._clusters.values())

    async def shutdown(self) -> tuple[str, ...]:
        """Send the shutdown message to each cluster, close the connection and end `run` within a few seconds.

        Returns the ids of the Zeek instances that were connected.
        """
        self._stopping = True
        ended = await asyncio.gather(*(one.shutdown(SHUTDOWN_TIMEOUT_SECONDS) for one in self._clusters.values()))
        if self._work is not None:
            self._work.cancel()
        return tuple(instance for instances in ended for instance in instances)

    def statuses(self) -> Sequence[ConnectionStatus]:
        """A row per cluster that has had a session, and one for the bus while no cluster has one."""
        welcomed = [cluster for cluster in self._clusters.values() if cluster.was_welcomed]
        rows = [cluster.status() for cluster in welcomed]
        if any(cluster.session is not None for cluster in welcomed):
            return rows
        return [*rows, self.status()]

    def status(self) -> ConnectionStatus:
        """Of the connection to a server, whatever the clusters there."""
        return ConnectionStatus(
            destination=str(self.destination),
            state=self._state.value,
            since=self._since,
            endpoint=self._link.server if self._link is not None else None,
            zeek_version=None,
            instances=0,
            queries=0,
            queued_rows=0,
            unacknowledged_bytes=0,
            window_bytes=messages.SMALL_BATCH_BYTES,
            sent_rows=0,
            sent_bytes=0,
            dropped_rows=0,
            reconnects=self._reconnects,
            last_error=self._last_error,
        )

    async def _connect_and_work(self) -> None:
        self._enter(ConnectionState.CONNECTING)
        user = credentials.user(self._files, self._agent_id)
        self._who_replies = subjects.who_replies(user.address)
        self._down_prefix = subjects.sessions_down(user.address).removesuffix("*.*")
        name = f"zeek-agent {self._agent_id}"
        now = self._monotonic()
        self._avoided = {server: until for server, until in self._avoided.items() if until > now}
        connected = await open_link(self.destination, self._files, user, name, self._report, avoided=self._avoided)
        try:
            connected.require_payloads()
            self._link, self._user = connected, user
            self._failed = asyncio.get_running_loop().create_future()
            log.info("connected to the bus at %s, NATS %s", connected.server, connected.server_version)
            await connected.subscribe(subjects.sessions_down(user.address), self._receive)
            await connected.subscribe(subjects.all_agents(), self._receive_beacon)
            await connected.flush()
            self._logged_error = None
            for name in self._clusters:
                self._have_sessions(name)
            await connected.publish(subjects.who(user.address), reply=self._who_replies)
            await first_to_end(connected.ended(), self._check_server(connected), _result(self._failed))
        finally:
            self._link = None
            tasks = list(self._tasks.values())
            self._tasks.clear()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await connected.close()

    async def _check_server(self, connected: Link) -> None:
        """The library's pings may stay without effect on a connection that is blocked: ask the server, too."""
        seconds = self._times.server
        while True:
            await asyncio.sleep(seconds)
            await connected.flush(int(seconds))

    async def _receive(self, message: Received) -> None:
        """A message to one of the sessions, or a reply to `who`."""
        if message.subject == self._who_replies:
            if message.payload:  # it is empty if there is no gateway
                self._heard(message.payload, None)
            return
        session, _, name = message.subject.removeprefix(self._down_prefix).partition(".")
        kind = _DOWN.get(name)
        if kind is None:
            self._log_problem("subject", f"skipped a message on the bus of an unknown kind: {clipped(name)}")
            return
        for cluster in self._clusters.values():
            if cluster.session is not None and cluster.session.welcome.session == session:
                cluster.session.receive(kind, message.payload)
                return
        kept = [cluster.keep_early(session, kind, message.payload) for cluster in self._clusters.values()]
        if any(kept):
            return
        self._log_problem("session", f"skipped a message on the bus to a session that does not exist ({kind})")

    async def _receive_beacon(self, message: Received) -> None:
        self._heard(message.payload, message.subject.rpartition(".")[2])

    def _heard(self, payload: bytes, cluster: str | None) -> None:
        """A beacon; one that replies to `who` names the cluster."""
        try:
            beacon = messages.read(payload, Beacon)
        except BadMessageError as error:
            self._log_problem("beacon", f"skipped a message on the bus: {error}")
            return
        name = beacon.cluster if cluster is None else cluster
        if not subjects.is_name(name):
            self._log_problem("beacon", f"skipped a message on the bus: a beacon of cluster {clipped(name)!r}")
            return
        if not self._has_place(name, is_heard=cluster is not None):
            return
        self._clusters[name].invite(beacon)
        self._have_sessions(name)

    def _has_place(self, name: str, *, is_heard: bool) -> bool:
        """Whether the agent has, or now begins, sessions with a cluster."""
        if name in self._clusters:
            if is_heard and name in self._found:
                self._found[name].is_heard = True
            return True
        if self._bus.clusters:
            log.debug("cluster %s is not in bus.clusters", name)
            return False
        for known in self._found.values():
            known.was_welcomed = self._clusters[known.name].was_welcomed
        now = self._monotonic()
        place = makes_way(self._found.values(), CLUSTERS_MAX, is_heard=is_heard, now=now)
        if place is not True:
            self._log_problem("clusters", f"too many clusters on the bus: {name} is one of them (bus.clusters)")
        if place is False:
            return False
        if isinstance(place, Candidate):
            self._drop(place.name)
        self._clusters[name] = Cluster(name, self._surroundings)
        self._found[name] = Candidate(name, now, is_heard)
        return True

    def _drop(self, name: str) -> None:
        """Forget a cluster that has never welcomed the agent."""
        del self._found[name], self._clusters[name]
        if (task := self._tasks.pop(name, None)) is not None:
            task.cancel()

    def _have_sessions(self, name: str) -> None:
        """Run a cluster's sessions over the present connection."""
        if name in self._tasks or self._link is None or self._user is None:
            return
        work = self._clusters[name].run(self._link, self._user, self._not_passed, is_named=name in self._bus.clusters)
        task = self._tasks[name] = asyncio.create_task(work, name=f"cluster {name} on the bus")
        task.add_done_callback(self._sessions_ended)

    def _not_passed(self, cluster: str) -> None:
        """The server passes on a cluster's beacons, but not the agent's hellos. Use another server, if there is one."""
        link, user = self._link, self._user
        if link is None or user is None:
            return
        server = f"{link.server} ({link.server_name})" if link.server_name else link.server
        text = NOT_PASSED.format(server=server, site=user.address.site, cluster=cluster)
        has_session = any(one.session is not None for one in self._clusters.values())
        if has_session or len(self.destination.servers) == 1 or self._failed is None or self._failed.done():
            self._log_problem("site", text)
            self._last_error = text
            return
        self._avoided[link.url] = self._monotonic() + AVOIDED_SECONDS
        self._failed.set_exception(ConnectionError(text))

    def _sessions_ended(self, task: asyncio.Task[None]) -> None:
        """Pass on an error that a cluster's sessions do not handle."""
        error = None if task.cancelled() else task.exception()
        if error is not None and self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    def _report(self, problem: str) -> None:
        """What the server reports, such as a permission that is missing."""
        self._log_problem("server", f"{self.destination.title} reports: {problem}")
        self._last_error = problem

    @property
    def _failures(self) -> tuple[type[Exception], ...]:
        return (OSError, UsageError)

    def _explain(self, error: Exception) -> str:
        return explain(error, self.destination)

    def _log_problem(self, kind: str, text: str) -> None:
        """Log the first, tenth, hundredth… problem of its kind."""
        self._problems[kind] += 1
        times = self._problems[kind]
        is_power_of_ten = str(times).rstrip("0") == "1"
        log.log(logging.WARNING if is_power_of_ten else logging.DEBUG, "%s%s", text, f" ({times} times)" * (times > 1))


def require_packages(target: Destination) -> None:
    """Raises UsageError if the packages for the bus are not installed."""
    if importlib.util.find_spec("nats") is None or importlib.util.find_spec("nkeys") is None:
        raise UsageError(NO_EXTRA.format(url=target))


async def open_link(
    target: Destination,
    files: BusFiles,
    user: User,
    name: str,
    on_problem: Callable[[str], None] = lambda _: None,
    *,
    avoided: Collection[str] = (),
) -> Link:
    """A connection to one of the servers, as a user of these files; those that are `avoided` are tried last.

    Raises ConnectionError and UsageError.
    """
    context = tls.client_context(files.tls, "bus.tls") if target.is_tls or files.has_tls else None
    return await link.connect(
        target.servers,
        name=name,
        inbox=subjects.inbox(user.address),
        credentials=user.credentials,
        tls=context,
        tls_hostname=files.tls.server_name,
        on_problem=on_problem,
        avoided=avoided,
    )


def explain(error: BaseException, target: Destination) -> str:
    """One line that names the bus, what went wrong and the likely cause."""
    if isinstance(error, UsageError):
        return str(error)
    text = str(error)
    for sign, advice in _ADVICE:
        if sign in text.lower():
            return f"{target.title} cannot be used: {clipped(text)} ({advice})"
    return f"{target.title} cannot be used: {clipped(text)}"


_ADVICE: Final = (
    (
        "authorization violation",
        "the server does not accept the agent's credentials, if there are any: `zeek-agent doctor` checks them, "
        "`zeek-agent enroll` gets new ones",
    ),
    ("authentication expired", "the agent's credentials have expired: `zeek-agent enroll` gets new ones"),
    ("certificate verify failed", "bus.tls.ca_file sets the trusted CAs"),
    ("does not require tls", "enable TLS at the server, or write nats:// if others cannot read along"),
)


async def _result(future: asyncio.Future[None]) -> None:
    await future
