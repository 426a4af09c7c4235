"""The agent's SQL functions, and the list of SQLite's that are allowed. The documentation is made from `FUNCTIONS`.

Some of SQLite's functions are replaced because a single call can take hours on long texts: `instr`, `replace` and
`trim` compare byte by byte.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from zeek_agent.access import compile_regex
from zeek_agent.community_id import community_id
from zeek_agent.database.osquery_functions import (
    StandardDeviation,
    conditional_to_base64,
    cot,
    from_base64,
    inet_aton,
    md5,
    parent_directory,
    sha1,
    sha256,
    to_base64,
)
from zeek_agent.database.sql_values import as_number, as_text
from zeek_agent.database.times import ago, timestamp
from zeek_agent.database.versions import version_compare
from zeek_agent.errors import LimitError, SqlError

REGEX_CHARACTERS_MAX: Final = 2_000
"""Bounds the time to compile a pattern, which no check interrupts."""
REGEX_MEMORY_BYTES_MAX: Final = 1 << 20
"""Bounds RE2's program and its cache of states, which `limits.memory_bytes` does not cover."""
REGEX_STEPS_MAX: Final = 100_000_000
"""Bound of program size times text length: RE2's worst case takes about 20 ns a step."""
REPLACE_CHARACTERS_MAX: Final = 1 << 26
"""Characters; the limit on values is usually lower, but is checked only once the value exists."""

_UTF8_CONTINUATION: Final = 0x80


@dataclass(frozen=True, slots=True)
class Function:
    """An SQL function; `arguments` lists the possible numbers of arguments."""

    name: str
    signature: str
    summary: str
    call: Callable[..., Any]
    arguments: tuple[int, ...]
    replaces: bool = False
    """Whether it replaces SQLite's function of that name, with the same meaning."""
    reads_clock: bool = False
    """Whether the first argument of `call` is a function that returns the time at which the statement began."""
    reads_store: bool = False
    """Whether the first argument of `call` is the event store's id, or None without one."""
    checks_limits: bool = False
    """Whether the first argument of `call` is a function that raises LimitError when the statement must end."""
    aggregate: bool = False
    """Whether `call` makes an object with `step`, called for each row, and `final`."""
    osquery: bool = False
    """Whether it is a function of osquery; docs/osquery.md lists what differs."""


def regexp(pattern: Any, value: Any) -> int | None:
    """Whether the pattern (RE2) matches anywhere in the value."""
    if pattern is None or value is None:
        return None
    return int(_search(pattern, value) is not None)


def regex_match(value: Any, pattern: Any, group: Any) -> str | None:
    """The text of a group (0: the whole match) in the first match; NULL if there is no match."""
    if pattern is None or value is None or group is None:
        return None
    match = _search(pattern, value)
    if match is None:
        return None
    try:
        matched: bytes | None = match.group(as_number(group))
    except IndexError:
        raise SqlError(f"regex_match: the pattern has no group {group}") from None
    return None if matched is None else matched.decode(errors="replace")


def _search(pattern: Any, value: Any) -> Any:
    regex = _regex(as_text(pattern))
    raw = as_text(value).encode()
    _check_steps(regex, raw)
    return regex.search(raw)


def regex_split(check: Callable[[], None], value: Any, pattern: Any, index: Any) -> str | None:
    """Part number `index` (from 0) of the value, split at each match of the pattern (RE2). Parts can be
    empty, but an empty one behind the last match is left out. NULL without such a part."""
    if value is None or pattern is None or index is None:
        return None
    if not as_text(pattern):
        raise SqlError("regex_split: the pattern is empty")
    wanted, regex = as_number(index), _regex(as_text(pattern))
    raw = as_text(value).encode()
    _check_steps(regex, raw)
    if wanted < 0:
        return None
    start, search_from, found = 0, 0, False
    while search_from <= len(raw) and (match := regex.search(raw, search_from)) is not None:
        check()
        found = True
        begin, end = match.span()
        search_from = end
        if begin == end:
            search_from += 1
            while search_from < len(raw) and raw[search_from] & 0xC0 == _UTF8_CONTINUATION:
                search_from += 1
        if wanted == 0:
            return raw[start:begin].decode(errors="replace")
        wanted -= 1
        start = end
    return raw[start:].decode(errors="replace") if wanted == 0 and (start < len(raw) or not found) else None


def _check_steps(regex: Any, raw: bytes) -> None:
    if regex.programsize * len(raw) > REGEX_STEPS_MAX:
        raise LimitError(f"a regular expression of this size takes too long on a text of {len(raw)} bytes")


@lru_cache(maxsize=128)
def _regex(pattern: str) -> Any:
    if len(pattern) > REGEX_CHARACTERS_MAX:
        raise LimitError(f"a regular expression is longer than {REGEX_CHARACTERS_MAX} characters")
    try:
        return compile_regex(pattern.encode(), REGEX_MEMORY_BYTES_MAX)
    except ValueError as error:
        raise SqlError(f"not a regular expression (RE2): {error}") from error


def split(value: Any, separators: Any, index: Any) -> str | None:
    """Part number `index` (from 0) of the value, split at any of the separator characters and without empty parts."""
    if value is None or separators is None or index is None:
        return None
    content, cuts = as_text(value), set(as_text(separators))
    if len(cuts) > 64:
        raise LimitError("split: more than 64 separator characters")
    first, *others = cuts or {""}
    for other in others:
        content = content.replace(other, first)
    parts = [part for part in (content.split(first) if first else [content]) if part]
    position = as_number(index)
    return parts[position] if 0 <= position < len(parts) else None


def in_cidr_block(block: Any, address: Any) -> int | None:
    """Whether the address is in the block (`10.0.0.0/8`, `fe80::/10`); NULL if it is not an address."""
    if block is None or address is None:
        return None
    try:
        network = _network(as_text(block))
    except ValueError as error:
        raise SqlError(f"in_cidr_block: {error}") from error
    try:
        return int(ipaddress.ip_address(as_text(address)) in network)
    except ValueError:
        return None


@lru_cache(maxsize=256)
def _network(block: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(block, strict=False)


def community_id_v1(  # noqa: PLR0917 - called by position, from SQL
    source: Any,
    destination: Any,
    source_port: Any,
    destination_port: Any,
    protocol: Any,
    seed: Any = 0,
) -> str | None:
    """The connection's Community ID, as specified; `protocol` is the IP protocol number. NULL if it has none."""
    if None in (source, destination, source_port, destination_port, protocol, seed):
        return None
    try:
        return _community_id(source, destination, source_port, destination_port, protocol, seed)
    except (ValueError, OverflowError):
        return None


def community_id_v1_strict(  # noqa: PLR0917 - called by position, from SQL
    source: Any,
    destination: Any,
    source_port: Any,
    destination_port: Any,
    protocol: Any,
    seed: Any = 0,
) -> str:
    """The same, but an error if the connection has none."""
    try:
        return _community_id(source, destination, source_port, destination_port, protocol, seed)
    except (ValueError, OverflowError, TypeError) as error:
        raise SqlError(f"community_id_v1_strict: {error}") from error


def _community_id(  # noqa: PLR0917 - as above
    source: Any, destination: Any, source_port: Any, destination_port: Any, protocol: Any, seed: Any
) -> str:
    return community_id(
        as_number(protocol),
        as_text(source),
        as_number(source_port),
        as_text(destination),
        as_number(destination_port),
        seed=as_number(seed),
    )


def instr(value: Any, wanted: Any) -> int | None:
    """Position (from 1) of the first occurrence; 0 if there is none."""
    if value is None or wanted is None:
        return None
    if isinstance(value, bytes) and isinstance(wanted, bytes):
        return value.find(wanted) + 1
    return as_text(value).find(as_text(wanted)) + 1


def replace(value: Any, old: Any, new: Any) -> Any:
    """The value with each occurrence of `old` replaced by `new`."""
    if value is None or old is None or new is None:
        return None
    content, old, new = as_text(value), as_text(old), as_text(new)
    if not old:
        return content
    if len(content) + content.count(old) * (len(new) - len(old)) > REPLACE_CHARACTERS_MAX:
        raise LimitError(f"replace: the result is longer than {REPLACE_CHARACTERS_MAX} characters")
    return content.replace(old, new)


def trim(value: Any, characters: Any = " ") -> str | None:
    """The value without those characters at both ends."""
    return _strip(value, characters, left=True, right=True)


def ltrim(value: Any, characters: Any = " ") -> str | None:
    """The value without those characters at its start."""
    return _strip(value, characters, left=True, right=False)


def rtrim(value: Any, characters: Any = " ") -> str | None:
    """The value without those characters at its end."""
    return _strip(value, characters, left=False, right=True)


def _strip(value: Any, characters: Any, *, left: bool, right: bool) -> str | None:
    if value is None or characters is None:
        return None
    content, cut = as_text(value), set(as_text(characters))
    start, end = 0, len(content)
    while left and start < end and content[start] in cut:
        start += 1
    while right and end > start and content[end - 1] in cut:
        end -= 1
    return content[start:end]


def event_store(store: str | None) -> str | None:
    """The event store's id, which restarts do not change. With an event's `seq` it identifies the event permanently.
    NULL if there is no store."""
    return store


def _function(call: Callable[..., Any], signature: str, arguments: tuple[int, ...], **flags: bool) -> Function:
    summary = " ".join((call.__doc__ or "").split())
    return Function(call.__name__, signature, summary, call, arguments, **flags)


FUNCTIONS: Final = (
    _function(regexp, "value REGEXP pattern", (2,)),
    _function(regex_match, "regex_match(value, pattern, group)", (3,)),
    _function(split, "split(value, separators, index)", (3,)),
    _function(timestamp, "timestamp(text)", (1,)),
    _function(ago, "ago(text)", (1,), reads_clock=True),
    _function(in_cidr_block, "in_cidr_block(block, address)", (2,)),
    _function(
        community_id_v1,
        "community_id_v1(source, destination, source_port, destination_port, protocol [, seed])",
        (5, 6),
    ),
    _function(event_store, "event_store()", (0,), reads_store=True),
    _function(regex_split, "regex_split(value, pattern, index)", (3,), checks_limits=True, osquery=True),
    _function(version_compare, "version_compare(left, right [, flavor])", (2, 3), osquery=True),
    _function(inet_aton, "inet_aton(address)", (1,), osquery=True),
    _function(parent_directory, "parent_directory(path)", (1,), osquery=True),
    _function(to_base64, "to_base64(value)", (1,), osquery=True),
    _function(from_base64, "from_base64(text)", (1,), osquery=True),
    _function(conditional_to_base64, "conditional_to_base64(value)", (1,), osquery=True),
    _function(md5, "md5(value)", (1,), osquery=True),
    _function(sha1, "sha1(value)", (1,), osquery=True),
    _function(sha256, "sha256(value)", (1,), osquery=True),
    _function(cot, "cot(angle)", (1,), osquery=True),
    _function(
        community_id_v1_strict,
        "community_id_v1_strict(source, destination, source_port, destination_port, protocol [, seed])",
        (5, 6),
        osquery=True,
    ),
    Function(
        "stdev",
        "stdev(value)",
        " ".join((StandardDeviation.__doc__ or "").split()),
        StandardDeviation,
        (1,),
        aggregate=True,
    ),
    _function(instr, "instr(value, wanted)", (2,), replaces=True),
    _function(replace, "replace(value, old, new)", (3,), replaces=True),
    _function(trim, "trim(value [, characters])", (1, 2), replaces=True),
    _function(ltrim, "ltrim(value [, characters])", (1, 2), replaces=True),
    _function(rtrim, "rtrim(value [, characters])", (1, 2), replaces=True),
)

_BUILT_IN: Final = """
abs char coalesce concat concat_ws format glob hex if ifnull iif instr length like likely unlikely likelihood lower
ltrim max min nullif octet_length printf quote random randomblob replace round rtrim sign substr substring trim
typeof unhex unicode unistr upper sqlite_version
acos acosh asin asinh atan atan2 atanh ceil ceiling cos cosh degrees exp floor ln log log10 log2 mod pi pow power
radians sin sinh sqrt tan tanh trunc
current_date current_time current_timestamp date datetime julianday strftime time timediff unixepoch
avg count group_concat median percentile percentile_cont percentile_disc string_agg sum total
cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank row_number
json json_array json_array_length json_each json_error_position json_extract json_group_array json_group_object
json_insert json_object json_pretty json_quote json_remove json_replace json_set json_tree json_type json_valid
subtype -> ->>
"""
BUILT_IN: Final = frozenset(_BUILT_IN.split())
"""SQLite's functions that statements may call: they read only their arguments and return quickly."""
