"""Tables that declare privileges: what they need on this host, and what the configuration permits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from zeek_agent.access import AccessPolicy
from zeek_agent.errors import AccessDeniedError
from zeek_agent.host.accounts import name_service
from zeek_agent.privileges import NO_PRIVILEGES, Privileges
from zeek_agent.schema import Row
from zeek_agent.table import Constraints, Table


def read_table(table: Table, wanted: Constraints) -> Iterable[Row]:
    """The table's rows: from a helper process if this question needs privileges that this process does not have.

    Raises AccessDeniedError if the configuration does not permit them, and what the table and the helper raise.
    """
    if table.privileges == NO_PRIVILEGES or not table.is_privileged(wanted):
        return table.rows(wanted)
    context = wanted.context
    granted = granted_privileges(table, context.access)
    if context.helper is None or granted == NO_PRIVILEGES:
        return table.completed(table.rows(wanted), wanted)
    return table.completed(context.helper(table, wanted), wanted)


def granted_privileges(table: Table, access: AccessPolicy) -> Privileges:
    """What a helper that reads the table gets. Raises AccessDeniedError if a declared privilege is not permitted.

    The user database is left out where local files are all of it, or where the configuration says so: then the table
    has the rows of local files.
    """
    privileges = table.privileges
    refused = None if table.is_operators else access.refused_privilege(table.name, privileges)
    if refused is not None:
        raise AccessDeniedError(
            f"table {table.name} may not use {refused}: permit it with access.privileges_allow = [{table.name!r}]"
        )
    if privileges.user_database and not (access.user_database and name_service.has_daemons()):
        privileges = replace(privileges, user_database=False)
    return privileges
