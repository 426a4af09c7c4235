"""Ancestors and descendants of a process: running ones from proc(5), exited ones from the event store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Final, TypeAlias

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


@dataclass(frozen=True, slots=True)
class Member:
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

    def row(self, relation: str, depth: int) -> Row:
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
            json.loads(self.argv) if isinstance(self.argv, str) else self.argv,
        )


PROCESSES_MAX: Final = 50_000
"""Running processes, and ended members of one tree; each takes about a kilobyte while a statement runs."""

RecordedRows: TypeAlias = Callable[[str, Sequence[Any]], Sequence[Row]]
"""Runs a statement on the event store."""

_LAST_WITH_PID: Final = "SELECT entity_id FROM processes_events WHERE pid = ? ORDER BY seq DESC LIMIT 1"
_PARENTS: Final = (
    "SELECT DISTINCT entity_id, parent_entity_id FROM processes_events "
    "WHERE parent_entity_id IS NOT NULL AND entity_id IN (SELECT value FROM json_each(?))"
)
_CHILDREN: Final = (
    "SELECT DISTINCT entity_id, parent_entity_id FROM processes_events "
    "WHERE entity_id <> '' AND parent_entity_id IN (SELECT value FROM json_each(?))"
)
_FACTS: Final = (
    "SELECT entity_id, parent_entity_id, pid, ppid, name, exe, cmdline, uid, "
    "iif(state = 'stopped', time - duration, time), iif(state = 'stopped', time, NULL), parent_name, parent_exe, argv "
    "FROM processes_events WHERE entity_id IN (SELECT value FROM json_each(?)) ORDER BY seq"
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
    children = _descendants(root, parents, recorded)
    facts = _recorded_facts({root, *ancestors}.union(*children.values()), recorded)
    unsure = [fact.pid for fact in facts.values() if fact.pid and not fact.exit_time and fact.entity_id not in living]
    living |= {member.entity_id: member for member in _living(wanted, unsure)}
    known = _with_living(facts, living)
    _add_unrecorded(known, [*sorted(children.get(root, ()))[:1], root, *ancestors])
    if root not in known:
        return
    for depth, entity in reversed(list(enumerate(ancestors, 1))):
        yield known[entity].row("ancestor", depth)
    yield known[root].row("self", 0)
    waiting = [(1, child) for child in _by_age(children.get(root, ()), known)]
    while waiting:
        depth, entity = waiting.pop()
        yield known[entity].row("descendant", depth)
        waiting += [(depth + 1, child) for child in _by_age(children.get(entity, ()), known)]


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
    while True:
        entity = lineage[-1]
        if entity not in parents:
            parents[entity] = None
            parents.update(_links(recorded, _PARENTS, [entity]))
        parent = parents[entity]
        if parent is None or parent in lineage:
            return lineage[1:]
        lineage.append(parent)


def _descendants(root: str, parents: dict[str, str | None], recorded: RecordedRows) -> dict[str, set[str]]:
    """Children by parent, generation by generation; adds those that have ended to `parents`."""
    children: dict[str, set[str]] = {}
    for child, parent in parents.items():
        if parent is not None:
            children.setdefault(parent, set()).add(child)
    found: dict[str, set[str]] = {}
    generation = {root}
    while generation:
        for child, parent in _links(recorded, _CHILDREN, generation).items():
            if parents.setdefault(child, parent) == parent:
                children.setdefault(parent, set()).add(child)
        found.update({entity: children[entity] for entity in generation if entity in children})
        if len(parents) > PROCESSES_MAX:
            raise LimitError(f"table process_tree: the tree has more than {PROCESSES_MAX} processes")
        generation = {child for entity in generation for child in children.get(entity, ())} - found.keys()
    return found


def _recorded_facts(entities: Iterable[str], recorded: RecordedRows) -> dict[str, Member]:
    """These processes as recorded in the event store."""
    facts: dict[str, Member] = {}
    row: Any
    for row in recorded(_FACTS, [json.dumps(list(entities))]):
        event = Member(*row)
        facts[event.entity_id] = _merged(facts.get(event.entity_id), event)
    return facts


def _with_living(facts: Mapping[str, Member], living: Mapping[str, Member]) -> dict[str, Member]:
    """Everything known about each process: from /proc if it has not ended, except for its recorded parent."""
    known = dict(facts)
    for entity, shown in living.items():
        past = facts.get(entity)
        if past is None:
            known[entity] = shown
        elif past.exit_time is not None:
            known[entity] = replace(past, start_time=shown.start_time)
        else:
            ppid = past.ppid if past.parent is not None else shown.ppid
            known[entity] = replace(shown, parent=past.parent or shown.parent, ppid=ppid)
    return known


def _merged(before: Member | None, event: Member) -> Member:
    """Merge an earlier and a later event of a process: fields unknown to the later one are kept."""
    if before is None:
        return event
    start = before.start_time if event.exit_time is None else event.start_time or before.start_time
    return replace(
        event,
        parent=event.parent or before.parent,
        name=event.name or before.name,
        exe=event.exe or before.exe,
        cmdline=before.cmdline if event.cmdline is None else event.cmdline,
        argv=before.argv if event.cmdline is None else event.argv,
        uid=before.uid if event.uid is None else event.uid,
        start_time=start,
        parent_name=event.parent_name or before.parent_name,
        parent_exe=event.parent_exe or before.parent_exe,
    )


def _add_unrecorded(known: dict[str, Member], lineage: Sequence[str]) -> None:
    """Parents without events of their own, because they ended too early, as described by their children's events."""
    for child, parent in pairwise(lineage):
        if parent not in known and (told := known.get(child)) is not None:
            known[parent] = Member(parent, None, told.ppid, None, told.parent_name, told.parent_exe)


def _by_age(entities: Iterable[str], known: Mapping[str, Member]) -> list[str]:
    """Youngest first, in the order for a stack."""
    return sorted(entities, key=lambda entity: (known[entity].start_time or 0.0, known[entity].pid or 0), reverse=True)


TABLES = (process_tree,)
