"""A query pack as a Zeek script: record types, handlers of rows, log streams, options, and the queries themselves.

The text is formatted as `zeek-script format` formats the package's scripts.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from zeek_agent.collector.pack_file import PackFile
from zeek_agent.collector.zeek_logs import PACKAGE_PREFIX, Log, Member, Statement, Timing, logs_of

FRAMEWORK: Final = "zeek-agent/framework"
"""The part of the package that a script needs, without the package's own logs."""

_LINE: Final = 80
_TAB: Final = 8
_COMMENT: Final = 100
_TEXT: Final = 90


def script(file: PackFile, origin: str) -> str:
    """The whole pack as one script. Raises UsageError that begins with `origin` and names the place."""
    logs = logs_of(file, origin)
    modules = list(dict.fromkeys(log.module for log in logs))
    head = f"The logs of a query pack, written by ``zeek-agent pack zeek``: {', '.join(log.path for log in logs)}."
    sections = [_module([log for log in logs if log.module == module]) for module in modules]
    return "\n".join([_wrapped(head, "##! "), f"@load {FRAMEWORK}\n", "\n".join(sections)])


def package_scripts(file: PackFile, origin: str) -> dict[str, tuple[tuple[str, ...], str]]:
    """The scripts of the package, one for each module, by the stem of the file's name: its logs, and its text."""
    logs = logs_of(file, origin)
    scripts = {}
    for module in dict.fromkeys(log.module for log in logs):
        own = [log for log in logs if log.module == module]
        head = "; ".join(f"{log.summary.rstrip('.')}, in ``{log.path}.log``" for log in own)
        stem = own[0].path.removeprefix(PACKAGE_PREFIX)
        parts = [_wrapped(f"{head}.", "##! "), "@load ../framework\n", _module(own)]
        scripts[stem] = (tuple(log.path for log in own), "\n".join(parts))
    return scripts


def _module(logs: Sequence[Log]) -> str:
    """The module of these logs."""
    timings = tuple(dict.fromkeys(statement.timing for log in logs for statement in log.statements))
    is_enabled = any(statement.is_enabled for log in logs for statement in log.statements)
    exported = [
        f"## Whether to ask agents.\nconst enabled = {'T' if is_enabled else 'F'} &redef;",
        *(_options(timing, number) for number, timing in enumerate(timings)),
        _log_ids(logs),
        *(record for log in logs for record in _records(log)),
        *(
            f"## Decides what is logged to ``{log.path}.log``.\nglobal {log.name('log_policy')}: Log::PolicyHook;"
            for log in logs
        ),
        *(
            f"## Raised for each line of ``{log.path}.log``.\nglobal {log.log_event}: event(rec: {log.name('Info')});"
            for log in logs
        ),
    ]
    parts = [
        f"module {logs[0].module};",
        "export {\n" + "\n\n".join(_indented(part) for part in exported) + "\n}",
        "\n".join(f"type {log.name('Rows')}: vector of {log.name('Columns')};" for log in logs),
        *(function for log in logs for function in _functions(log)),
        *(_handler(log) for log in logs),
        _zeek_init(logs, timings, everything=not is_enabled),
    ]
    return "\n\n".join(parts) + "\n"


def _options(timing: Timing, number: int) -> str:
    interval, subscription = _option_names(number)
    return (
        f"## How often to ask.\noption {interval} = {_interval(timing.seconds)};\n\n"
        f"## How results are reported.\noption {subscription} = ZeekAgent::{timing.subscription};"
    )


def _option_names(number: int) -> tuple[str, str]:
    suffix = f"_{number + 1}" if number else ""
    return f"query_interval{suffix}", f"subscription{suffix}"


def _interval(seconds: float) -> str:
    return f"{seconds:f}".rstrip("0").rstrip(".") + "sec"


def _log_ids(logs: Sequence[Log]) -> str:
    names = [log.name("LOG") for log in logs]
    if len(names) == 1:
        return f"redef enum Log::ID += {{ {names[0]} }};"
    return "redef enum Log::ID += {\n\t" + ",\n\t".join(names) + "\n};"


def _records(log: Log) -> Iterator[str]:
    """The log's record types, those that others contain first."""
    for column in log.columns:
        if column.members:
            yield _record(log.record_type(column), column.summary, map(_field, column.members))
    fields = [_field(column, _type(log, column)) for column in log.columns]
    name = log.name("Columns")
    if log.basic < len(fields):
        yield _record(log.name("Basic"), "The columns that any agent has.", fields[: log.basic])
        yield _record(name, "A row; the columns after the basic ones are those of agents that know batches.", fields)
    else:
        yield _record(name, "A row.", fields)
    info = ["## When Zeek got it.\nt: time &log;", "## Id of the agent.\nhid: string &log;"]
    info.append("## Name of the host.\nhost: string &log;")
    if log.has_change:
        info.append("## ``new`` or ``gone``; unset in a snapshot.\nchange: string &log &optional;")
    info.append(f"## The row.\ncolumns: {name} &log;")
    if log.has_store:
        store = "## Id of the agent's event store; with ``seq`` it names the event for good.\n"
        info.append(f"{store}store: string &log &optional;")
    yield _record(log.name("Info"), f"The columns of ``{log.path}.log``.", info)


def _record(name: str, summary: str, fields: Iterable[str]) -> str:
    lines = [_comment(summary), f"type {name}: record {{", *map(_indented, fields), "};"]
    return "\n".join(lines)


def _type(log: Log, column: Member) -> str:
    return log.record_type(column) if column.members else re.sub(r"^vector\[(.*)\]$", r"vector of \1", column.type)


def _field(column: Member, kind: str | None = None) -> str:
    return f"{_comment(column.summary)}\n{column.name}: {kind or column.type} &log &optional;"


def _functions(log: Log) -> Iterator[str]:
    if log.required:
        yield _is_complete(log)
    yield _write_rows(log)
    yield _write_row(log)


def _is_complete(log: Log) -> str:
    """Whether a row has the fields that the pack says are not optional, as the collector asks."""
    arguments = ["ctx: ZeekAgent::Context,", f"columns: {log.name('Columns')}): bool"]
    lines = [_filled(f"function {log.name('is_complete')}(", arguments, tabs=0), "{"]
    for steps in log.required:
        tests = [f"columns?${steps[0]}", *(f"columns${steps[0]}?${step}" for step in steps[1:])]
        missing = f"! {tests[0]}" if len(tests) == 1 else f"! ( {' && '.join(tests)} )"
        message = _text(f"Zeek Agent: row for {log.path} from %s has no {steps[-1]}")
        report = _filled("Reporter::error(", [f"fmt({message},", "ctx$agent_id));"], tabs=2)
        lines += [f"if ( {missing} )", "\t{", _indented(report), "\treturn F;", "\t}", ""]
    return _block([*lines, "return T;", "}"])


def _write_rows(log: Log) -> str:
    arguments = ["ctx: ZeekAgent::Context,", "batch: ZeekAgentAPI::Batch,", "rows: any)"]
    lines = [_filled(f"function {log.name('write_rows')}(", arguments, tabs=0), "{"]
    lines += ["local t = network_time();", "local host = ZeekAgent::hostname(ctx);"]
    if log.has_change:
        lines.append("local change = ZeekAgent::change_type(ctx);")
    lines += ["", f"for ( _, columns in rows as {log.name('Rows')} )", "\t{"]
    if log.required:
        lines += [f"\tif ( ! {log.name('is_complete')}(ctx, columns) )", "\t\tnext;", ""]
    arguments = ["$t=t,", "$hid=ctx$agent_id,", "$host=host,", "$columns=columns"]
    arguments[-1:] = [f"{arguments[-1]},", "$store=batch$store);"] if log.has_store else [f"{arguments[-1]});"]
    lines.append(_indented(_filled(f"local info = {log.name('Info')}(", arguments, tabs=2)))
    if log.has_change:
        lines += ["", '\tif ( change != "" )', "\t\tinfo$change = change;"]
    return _block([*lines, "", f"\tLog::write({log.name('LOG')}, info);", "\t}", "}"])


def _write_row(log: Log) -> str:
    arguments = ["ctx: ZeekAgent::Context,", f"columns: {log.name('Columns')})"]
    lines = [_filled(f"function {log.name('write_row')}(", arguments, tabs=0), "{"]
    if log.required:
        lines += [f"if ( ! {log.name('is_complete')}(ctx, columns) )", "\treturn;", ""]
    arguments = ["$t=network_time(),", "$hid=ctx$agent_id,", "$host=ZeekAgent::hostname(ctx),", "$columns=columns);"]
    lines.append(_filled(f"local info = {log.name('Info')}(", arguments))
    if log.has_change:
        lines += ["", "if ( ctx?$change )", "\tinfo$change = ZeekAgent::change_type(ctx);"]
    return _block([*lines, "", f"Log::write({log.name('LOG')}, info);", "}"])


def _handler(log: Log) -> str:
    name, write = log.name("Columns"), log.name("write_row")
    is_basic = log.basic < len(log.columns)
    arguments = ["ctx: ZeekAgent::Context,", f"columns: {'any' if is_basic else name})"]
    lines = [_filled(f"event {log.module}::{log.event}(", arguments, tabs=0), "{"]
    if is_basic:
        lines += [f"if ( columns is {name} )", f"\t{write}(ctx, columns as {name});"]
        lines += ["else", f"\t{write}(ctx, columns as {log.name('Basic')});"]
    else:
        lines.append(f"{write}(ctx, columns);")
    return _block([*lines, "}"])


def _zeek_init(logs: Sequence[Log], timings: Sequence[Timing], *, everything: bool) -> str:
    lines = ["event zeek_init()", "{"]
    for log in logs:
        columns = [f"{log.name('Columns')}," if log.renamed else f"{log.name('Columns')});"]
        arguments = [f"{log.name('LOG')},", f"Log::Stream($columns={log.name('Info')},", f"$ev={log.log_event},"]
        arguments += [f"$path={_text(log.path)},", f"$policy={log.name('log_policy')}),", *columns]
        renamed = [f"[{_text(field)}] = {_text(name)}" for field, name in log.renamed.items()]
        arguments += [f"{text}," for text in renamed[:-1]] + [f"{text}));" for text in renamed[-1:]]
        if renamed:
            arguments[-len(renamed)] = f"table({arguments[-len(renamed)]}"
        lines.append(_filled("ZeekAgent::create_stream(", arguments))
    lines += ["", "if ( ! enabled )", "\treturn;"]
    asked = [(log, statement) for log in logs for statement in log.statements if everything or statement.is_enabled]
    for number, (log, statement) in enumerate(asked):
        suffix = f"_{number + 1}" if number else ""
        lines += ["", *_query(log, statement, timings.index(statement.timing), suffix)]
    return _block([*lines, "}"])


def _query(log: Log, statement: Statement, timing: int, suffix: str) -> Iterator[str]:
    interval, subscription = _option_names(timing)
    yield _text_variable(f"sql{suffix}", statement.sql)
    arguments = [f"$sql_stmt=sql{suffix},"]
    if statement.batch_sql is not None:
        yield _text_variable(f"batch_sql{suffix}", statement.batch_sql)
        arguments.append(f"$batch_stmt=batch_sql{suffix},")
    arguments += [f"$event_={log.event},", f"$row_type={log.name('Rows')},", f"$on_rows={log.name('write_rows')},"]
    arguments += [f"$schedule_={interval},", f"$subscription={subscription});"]
    query = f"query{suffix}"
    yield _filled(f"local {query} = ZeekAgent::Query(", arguments)
    for table in statement.requires_tables:
        yield f"add {query}$requires_tables[{_text(table)}];"
    for table in statement.if_missing_tables:
        yield f"add {query}$if_missing_tables[{_text(table)}];"
    if statement.groups == ("all",):
        yield f"ZeekAgent::query({query});"
        return
    for group in statement.groups:
        yield f"ZeekAgent::query({query}, ZeekAgent::Group, {_text(group)});"
    for host in statement.hosts:
        yield f"ZeekAgent::query({query}, ZeekAgent::Host, {_text(host)});"


def _block(lines: Iterable[str]) -> str:
    """A function: all lines after the first one are indented."""
    head, *rest = lines
    return "\n".join([head, *(_indented(line) for line in rest)])


def _indented(text: str) -> str:
    return "\n".join(f"\t{line}" if line else "" for line in text.split("\n"))


def _filled(head: str, words: Sequence[str], *, tabs: int = 1) -> str:
    """A call or signature with as many arguments on each line as fit, for a place that is indented by `tabs`."""
    lines = [head + words[0]]
    for word in words[1:]:
        if tabs * _TAB + len(lines[-1]) + 1 + len(word) <= _LINE:
            lines[-1] += f" {word}"
        else:
            lines.append(f"    {word}")
    return "\n".join(lines)


def _text_variable(name: str, text: str) -> str:
    """A local variable that holds a text, in pieces where it is long."""
    pieces = _pieces(text)
    literals = [_text(piece) for piece in pieces]
    line = f"local {name} = {literals[0]}"
    if len(pieces) == 1 and _TAB + len(line) + 1 > _LINE >= _TAB + 4 + len(literals[0]) + 1:
        return f"local {name} =\n    {literals[0]};"
    return "\n    + ".join([line, *literals[1:]]) + ";"


def _pieces(text: str) -> list[str]:
    """The text in pieces that end with a blank."""
    if len(text) <= _TEXT + 10:
        return [text]
    pieces, piece = [], ""
    for word in re.findall(r"\S*\s*", text):
        if piece and len(piece) + len(word) > _TEXT:
            pieces.append(piece)
            piece = ""
        piece += word
    return [*pieces, piece]


def _text(text: str) -> str:
    """A string constant of Zeek's."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return '"' + "".join(escapes.get(one) or (f"\\x{ord(one):02x}" if ord(one) < 32 else one) for one in text) + '"'


def _comment(text: str) -> str:
    return _wrapped(text, "## ").rstrip("\n")


def _wrapped(text: str, begin: str) -> str:
    """A comment; no text can end it, since line ends are blanks in it."""
    lines = textwrap.wrap(
        text, _COMMENT, initial_indent=begin, subsequent_indent=begin, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines) + "\n"
