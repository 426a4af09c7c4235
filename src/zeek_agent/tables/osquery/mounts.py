"""Mounted file systems."""

from __future__ import annotations

from collections.abc import Iterator

from zeek_agent.host.linux.mount_list import Space, mounted_file_systems, real_device, space_of
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table
from zeek_agent.tables.osquery._paths import open_gate
from zeek_agent.text import from_os

mounts = osquery_table(
    "mounts",
    "mounted file systems",
    description=(
        "One row per file system that is mounted for process 1, since a service has other mounts of its own. The space "
        "of a file system that could hang (FUSE, network, autofs; `access.filesystems_allow`), or that the agent does "
        "not see, is 0."
    ),
    columns=[
        Column("device", "text", "device or other source of the file system"),
        Column("device_alias", "text", "the device with all symbolic links resolved"),
        Column("path", "text", "mount point"),
        Column("type", "text", "type of the file system, such as `ext4`"),
        Column("blocks_size", "int", "size of a block in bytes"),
        Column("blocks", "int", "number of blocks"),
        Column("blocks_free", "int", "free blocks"),
        Column("blocks_available", "int", "blocks that are free for users other than root"),
        Column("inodes", "int", "number of inodes"),
        Column("inodes_free", "int", "free inodes"),
        Column("flags", "text", "mount options, separated by commas"),
    ],
    examples=[
        "SELECT path, type, flags FROM mounts WHERE path = '/tmp'",
        "SELECT path, blocks_available * blocks_size AS bytes FROM mounts WHERE blocks > 0",
    ],
    opens_files=True,
)

_SPACE = ("blocks_size", "blocks", "blocks_free", "blocks_available", "inodes", "inodes_free")


@mounts.snapshot
def mounted(wanted: Constraints) -> Iterator[Row]:
    gate = open_gate(wanted)
    space_needed = wanted.needs(*_SPACE)
    alias_needed = wanted.needs("device_alias")
    paths, kinds = wanted.equal("path"), wanted.equal("type")
    for each in mounted_file_systems(wanted.context.proc):
        wanted.check()
        path, kind = from_os(each.path), from_os(each.kind)
        if (paths is not None and path not in paths) or (kinds is not None and kind not in kinds):
            continue
        alias = real_device(gate, each.device) if alias_needed else ""
        space = space_of(gate, each) if space_needed else Space()
        yield from_os(each.device), from_os(alias), path, kind, *space, from_os(each.options)


TABLES = (mounts,)
