"""Ancestors and descendants of a process: running ones from proc(5), exited ones from the event store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Final, NamedTuple, TypeAlias

from zeek_agent.errors import LimitError, SqlError
from zeek_agent.host.linux.procfs import Procfs
from zeek_agent.schema import Column, Parameter, Row
from zeek_agent.table import Constraints, Table
from zeek_agent.tables._process_columns import process_columns

process_tree = Table(
    "process_tree",
    "ancestors and descendants of a process, including exited ones",
    description=(
        "One row for each ancestor of the process, outermost first, one for the process itself, and one for each "
        "descendant, depth first. Exited processes are included as long as the event store retains them. A process is "
        "the child of the process that started it, even if that has exited and the kernel has assigned a new parent. "
        "`process_tree(pid)` selects the process that has this pid now, or else the last one that had it; "
        "`WHERE _entity_id = …` selects exactly one process."
    ),
    columns=[
        Column("relation", "text", "`ancestor`, `self` or `descendant`"),
        Column("depth", "count", "generations between the process and this one"),
        Column("pid", "count", "process id"),
        Column("ppid", "count", "process id of the process that started it; if unknown, of its current parent"),
        Column("name", "text", "short name of the process, at most 15 bytes for user processes (comm in proc(5))"),
        Column("exe", "text", "path of the executable of the last program that it executed"),
        *process_columns("cmdline"),
        Column("uid", "count", "effective user id"),
        Column("start_time", "time", "when the process started"),
        Column("exit_time", "time", "when it exited; null if running or not recorded"),
        Column("running", "bool", "whether it is still running"),
        *process_columns("entity_id"),
        Column("parent_entity_id", "text", "`entity_id` of the process that started it"),
        *process_columns("argv", hidden=True),
    ],
    parameters=[
        Parameter("pid", "count", "process id; either this or `entity_id` must be given", required=False),
        Parameter("entity_id", "text", "unique process id (`entity_id`)", required=False),
    ],
    examples=[
        "SELECT relation, depth, pid, exe, cmdline FROM process_tree(1)",
        "SELECT name, exit_time FROM process_tree WHERE _pid = 1 AND relation = 'descendant' AND NOT running",
    ],
)


class Member(NamedTuple):
    """A process of the tree, with everything known about it."""

    entity_id: str
    parent: str | None
    pid: int | None
    ppid: int | None
    name: str | None
    exe: str | None
    cmdline: str | None = None
    uid: int | None = None
    start_time: float | None = None
    exit_time: float | None = None
    parent_name: str | None = None
    parent_exe: str | None = None
    argv: str | list[str] | None = None
    """JSON if it is from the event store."""
    running: bool = False

    def row(self, relation: str, depth: int, *, with_argv: bool) -> Row:
        argv = self.argv if with_argv else None
        return (
            relation,
            depth,
            self.pid,
            self.ppid,
            self.name,
            self.exe,
            self.cmdline,
            self.uid,
            self.start_time,
            self.exit_time,
            self.running,
            self.entity_id,
            self.parent,
            json.loads(argv) if isinstance(argv, str) else argv,
        )


PROCESSES_MAX: Final = 60_000
"""Members of one tree; each takes almost two kilobytes while a statement runs, and a worker has 160 MB."""

RecordedRows: TypeAlias = Callable[..., Iterable[Row]]
"""Runs a statement on the event store, with bindings and functions."""

_LAST_WITH_PID: Final = "SELECT entity_id FROM processes_events WHERE pid = ? ORDER BY seq DESC LIMIT 1"
_PARENTS: Final = (
    "SELECT DISTINCT entity_id, parent_entity_id FROM processes_events "
    "WHERE parent_entity_id IS NOT NULL AND entity_id IN (SELECT value FROM json_each(?))"
)
_STARTS: Final = (
    "SELECT entity_id, parent_entity_id FROM processes_events "
    "WHERE state = 'started' AND entity_id <> '' AND parent_entity_id IS NOT NULL ORDER BY seq"
)
"""Every recorded start, in the order of events: a process starts after its parent."""
_EVENTS: Final = (
    "SELECT entity_id, parent_entity_id, pid, ppid, name, exe, cmdline, uid, "
    "iif(state = 'stopped', time - duration, time), iif(state = 'stopped', time, NULL), parent_name, parent_exe, argv "
    "FROM processes_events WHERE entity_id <> '' AND is_wanted(entity_id, parent_entity_id) ORDER BY seq"
)
"""The columns of a Member, for each event of the process: start, exec, end."""


@process_tree.snapshot
def family(wanted: Constraints) -> Iterator[Row]:
    recorded: RecordedRows = partial(wanted.context.agent.recorded, check=wanted.check)
    living = {member.entity_id: member for member in _living(wanted)}
    root = _root(wanted, living, recorded)
    if root is None:
        return
    parents = {member.entity_id: member.parent for member in living.values()}
    parents.update(_links(recorded, _PARENTS, living))
    ancestors = _ancestors(root, parents, recorded)
    descent = _Descent(root, parents, ancestors)
    facts = _recorded_facts(descent, recorded)
    children = descent.children
    unsure = [fact.pid for fact in facts.values() if fact.pid and not fact.exit_time and fact.entity_id not in living]
    living |= {member.entity_id: member for member in _living(wanted, unsure)}
    known = _with_living(facts, living)
    _add_unrecorded(known, [*sorted(children.get(root, ()))[:1], root, *ancestors])
    if root not in known:
        return
    with_argv = wanted.needs("argv")
    for depth, entity in reversed(list(enumerate(ancestors, 1))):
        yield known[entity].row("ancestor", depth, with_argv=with_argv)
    yield known[root].row("self", 0, with_argv=with_argv)
    waiting = [(1, child) for child in _by_age(children.get(root, ()), known)]
    while waiting:
        depth, entity = waiting.pop()
        yield known[entity].row("descendant", depth, with_argv=with_argv)
        if entity in children:
            waiting += [(depth + 1, child) for child in _by_age(children[entity], known)]


def _living(wanted: Constraints, pids: Sequence[int] | None = None) -> Iterator[Member]:
    """The processes currently in /proc, all or those of `pids`, with their current parents."""
    masked = wanted.context.access.masker.command_line
    for process in Procfs(wanted.context.proc).processes(pids):
        wanted.check()
        try:
            command_line = masked(process.arguments) if process.arguments else None
            member = Member(
                process.entity_id,
                process.parent_entity_id,
                process.pid,
                process.ppid,
                process.name,
                process.exe,
                command_line.cmdline if command_line else None,
                process.uid,
                process.start_time,
                argv=command_line.argv if command_line else None,
                running=process.state not in {"zombie", "dead"},
            )
        except ProcessLookupError:
            continue
        yield member


def _root(wanted: Constraints, living: Mapping[str, Member], recorded: RecordedRows) -> str | None:
    """The requested process, by its entity id; None if it is unknown."""
    pid, entity = wanted.parameter("pid"), wanted.parameter("entity_id")
    if pid is None and entity is None:
        raise SqlError("table process_tree: parameter _pid or _entity_id is required")
    if entity is not None:
        return str(entity) if pid is None or str(entity).split("-")[1:2] == [str(pid)] else None
    found = next((member.entity_id for member in living.values() if member.pid == pid), None)
    return found or next((str(entity) for (entity,) in recorded(_LAST_WITH_PID, [pid])), None)


def _links(recorded: RecordedRows, sql: str, entities: Iterable[str]) -> dict[str, str]:
    """Recorded parents by child, of the children or parents that the statement takes."""
    return {str(child): str(parent) for child, parent in recorded(sql, [json.dumps(list(entities))])}


def _ancestors(root: str, parents: dict[str, str | None], recorded: RecordedRows) -> list[str]:
    """The parent, its parent, and so on; adds parents that have ended to `parents`."""
    lineage = [root]
    traced = False
    while True:
        entity = lineage[-1]
        if entity not in parents and not traced:
            traced = True
            _trace(entity, parents, recorded)
        if entity not in parents:  # its start was not recorded, but perhaps its end
            parents[entity] = None
            parents.update(_links(recorded, _PARENTS, [entity]))
        parent = parents[entity]
        if parent is None or parent in lineage:
            return lineage[1:]
        lineage.append(parent)


def _trace(entity: str, parents: dict[str, str | None], recorded: RecordedRows) -> None:
    """Add the recorded ancestors to `parents`, up to a known one, in one pass from the last event to the first."""
    row: Any
    for row in recorded(f"{_STARTS} DESC", []):
        child, parent = row
        if child == entity:
            parents[child] = entity = parent
            if entity in parents:
                return


class _Descent:
    """A process and its descendants, as events show them. `parents` gets those that are found."""

    def __init__(self, root: str, parents: dict[str, str | None], ancestors: Iterable[str]) -> None:
        self.members: set[str] = set()
        self.children: dict[str, set[str]] = {}
        self.is_complete = True
        self._parents = parents
        self._ancestors = frozenset(ancestors)
        self._passed: set[int] = set()
        """Hashes of processes that an event concerned while they were not members."""
        for child, parent in parents.items():
            if parent is not None:
                self.children.setdefault(parent, set()).add(child)
        self._admit(root)

    def begin_pass(self) -> Callable[[str, str | None], bool]:
        """The events come again, from the first on. Returns `is_wanted`, which is called with each of them in turn.

        It returns whether the event is one of a member, or of an ancestor. A member's child becomes a member.
        """
        self.is_complete = True
        self._passed.clear()
        members, ancestors, passed = self.members, self._ancestors, self._passed.add

        def is_wanted(entity: str, parent: str | None) -> bool:
            if entity in members:
                return True
            if parent in members:
                if self._parents.setdefault(entity, parent) == parent:
                    self.children.setdefault(parent, set()).add(entity)
                    self._admit(entity)
                    return True
            else:
                passed(hash(entity if parent is None else parent))
            return entity in ancestors

        return is_wanted

    def _admit(self, entity: str) -> None:
        """Add a process with its known descendants."""
        waiting = [entity]
        while waiting:
            member = waiting.pop()
            if member not in self.members:
                self.members.add(member)
                waiting += self.children.get(member, ())
                if hash(member) in self._passed:
                    self.is_complete = False
        if len(self.members) > PROCESSES_MAX:
            raise LimitError(f"table process_tree: the tree has more than {PROCESSES_MAX} processes")


def _recorded_facts(descent: _Descent, recorded: RecordedRows) -> dict[str, Member]:
    """The process, its ancestors and its descendants as recorded in the event store, which completes the descent.

    One pass over the events is enough unless a process is recorded after its child, which happens within a batch.
    """
    while True:
        facts: dict[str, Member] = {}
        row: Any
        for row in recorded(_EVENTS, functions={"is_wanted": descent.begin_pass()}):
            before = facts.get(row[0])
            facts[row[0]] = Member._make((*row, False)) if before is None else _merged(before, row)
        if descent.is_complete:
            return facts


def _with_living(facts: Mapping[str, Member], living: Mapping[str, Member]) -> dict[str, Member]:
    """Everything known about each process: from /proc if it has not ended, except for its recorded parent."""
    known = dict(facts)
    for entity, shown in living.items():
        past = facts.get(entity)
        if past is None:
            known[entity] = shown
        elif past.exit_time is not None:
            known[entity] = past._replace(start_time=shown.start_time)
        else:
            ppid = past.ppid if past.parent is not None else shown.ppid
            known[entity] = shown._replace(parent=past.parent or shown.parent, ppid=ppid)
    return known


def _merged(before: Member, event: Sequence[Any]) -> Member:
    """Merge a later event of a process, a row of `_EVENTS`: what it does not contain is kept."""
    entity, parent, pid, ppid, name, exe, cmdline, uid, start, end, parent_name, parent_exe, argv = event
    return Member(
        entity,
        parent or before.parent,
        pid,
        ppid,
        name or before.name,
        exe or before.exe,
        before.cmdline if cmdline is None else cmdline,
        before.uid if uid is None else uid,
        before.start_time if end is None else start or before.start_time,
        end,
        parent_name or before.parent_name,
        parent_exe or before.parent_exe,
        before.argv if cmdline is None else argv,
    )


def _add_unrecorded(known: dict[str, Member], lineage: Sequence[str]) -> None:
    """Parents without events of their own, because they ended too early, as described by their children's events."""
    for child, parent in pairwise(lineage):
        if parent not in known and (told := known.get(child)) is not None:
            known[parent] = Member(parent, None, told.ppid, None, told.parent_name, told.parent_exe)


def _by_age(entities: Iterable[str], known: Mapping[str, Member]) -> list[str]:
    """Youngest first, in the order for a stack."""
    members = [known[entity] for entity in entities]
    ages = [(member.start_time or 0.0, member.pid or 0, member.entity_id) for member in members]
    return [entity for _, _, entity in sorted(ages, reverse=True)]


TABLES = (process_tree,)
