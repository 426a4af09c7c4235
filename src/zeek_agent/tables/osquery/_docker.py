"""What the tables of Docker have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from zeek_agent.errors import SqlError
from zeek_agent.privileges import Privileges
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints, LookupTable
from zeek_agent.tables.osquery._declaration import osquery_table

if TYPE_CHECKING:
    from zeek_agent.host.docker import Docker

SOCKET: Final = "/var/run/docker.sock"
PERMISSION: Final = (
    f"Empty without Docker. The socket, `{SOCKET}`, is for root and a group; the operator has to permit its use: "
    f'`access.privileges_allow = ["{SOCKET}"]`.'
)

Reader: TypeAlias = "Callable[[Docker, Constraints], Iterable[Row]]"


def docker_table(
    name: str, summary: str, read: Reader, *, columns: Iterable[Column], description: str, **declaration: Any
) -> LookupTable:
    """A table whose rows `read` yields, in a helper process that can connect to Docker's socket."""
    table = osquery_table(
        name,
        summary,
        columns=columns,
        description=f"{description} {PERMISSION}",
        privileges=Privileges(unix_sockets=(SOCKET,)),
        **declaration,
    )

    def rows(wanted: Constraints) -> Iterator[Row]:
        from zeek_agent.host.docker import Docker, DockerError

        try:
            yield from read(Docker(SOCKET, wanted.check), wanted)
        except DockerError as error:
            raise SqlError(f"table {name}: Docker: {error}") from error

    table.snapshot(rows)
    return table


def containers(docker: Docker, wanted: Constraints) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The containers that a statement asks for, with their ids as it spells them.

    Without a comparison of `id`, as in osquery, these are the running ones.
    """
    return matching(docker, wanted, "/containers/json", all="1")


def matching(docker: Docker, wanted: Constraints, path: str, **for_ids: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The objects of a list, which has filters by id, that a statement asks for.

    `for_ids` are parameters of the request if the statement compares `id`.
    """
    import msgspec

    from zeek_agent.host.docker import asked_id, ids, plain_id, text

    values = wanted.equal("id")
    parameters: dict[str, str] = {}
    asked: list[str] = []
    if values is not None:
        asked = ids(values)
        if not asked:
            return
        filters = msgspec.json.encode({"id": dict.fromkeys(asked, True)}).decode()
        parameters = {**for_ids, "filters": filters}
    for found in docker.objects(path, **parameters):
        wanted.check()
        yield asked_id(plain_id(text(found, "Id")), asked), found


def labels_of(found: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[Row]:
    """A row per label of each object."""
    from zeek_agent.host.docker import labels

    return ((shown, key, value) for shown, one in found for key, value in labels(one))
