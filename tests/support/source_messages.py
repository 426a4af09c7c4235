"""Messages for operators in the agent's source: texts of exceptions, and log messages of level warning and above.

Found in the syntax tree, so that one that is added is found, too. What a message contains from run time is `…`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HOLE: Final = "…"
LOG_METHODS: Final = {"warning", "error", "critical", "exception"}
PASSED_ON_BY: Final = {"clipped", "escaped", "visible", "str"}
"""Functions that return the text that they are given."""
TO_ZEEK: Final = {"_post_error", "error_frame"}
"""Functions that report an error to Zeek."""
LEVELS: Final = {"'WARNING'", "'ERROR'"}
SHOWN: Final = {"last_error", "notice", "failure", "warning", "collector_error", "missing", "requirement"}
"""Attributes whose text `status`, `doctor` and tables show."""
RETURNING: Final = {"probe", "requirement", "shortcoming"}
"""Functions whose texts `doctor`, `zeek_agent_sources` and errors show."""
WHOLE_MODULES: Final = {"zeek/connection_errors.py"}
"""Modules of which each text is a message."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Message:
    """A message, or a relay: the place of one whose text is made elsewhere, and the expression for it."""

    place: str
    line: int
    text: str
    expression: str

    @property
    def is_relay(self) -> bool:
        """Whether the text has no word of its own, or is one: a part of other messages."""
        return " " not in self.text or not re.search(r"[^\W\d_]{2,}", self.text)


class Source:
    """The syntax trees of all modules below a directory."""

    def __init__(self, directory: Path) -> None:
        paths = sorted(directory.rglob("*.py"))
        self._trees = {one.relative_to(directory).as_posix(): ast.parse(one.read_text()) for one in paths}
        self._loggers = {name for tree in self._trees.values() for name in _loggers(tree)}
        self._functions: dict[str, list[Function]] = {}
        self._calls: dict[str, list[tuple[ast.Call, Function | None, ast.Module]]] = {}
        self._nodes = {place: list(_nodes(tree)) for place, tree in self._trees.items()}
        for place, tree in self._trees.items():
            for function, node in self._nodes[place]:
                match node:
                    case ast.FunctionDef() | ast.AsyncFunctionDef():
                        self._functions.setdefault(node.name, []).append(node)
                    case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                        self._calls.setdefault(name, []).append((node, function, tree))

    def messages(self) -> Iterator[Message]:
        """All messages, in order of their places."""
        for place, tree in self._trees.items():
            for function, node in self._nodes[place]:
                for alternatives in self._expressions(node, function, whole=place in WHOLE_MODULES):
                    found = [(one, text) for one in alternatives for text in self._texts(one, function, tree, 3)]
                    made = [Message(place, one.lineno, " ".join(text.split()), ast.unparse(one)) for one, text in found]
                    worded = [one for one in made if not one.is_relay]
                    yield from worded or made[:1]

    def _expressions(self, node: ast.AST, function: Function | None, *, whole: bool) -> Iterator[list[ast.expr]]:
        """For each text that a node makes, the arguments of which one is the text."""
        match node:
            case ast.Call(args=[_, *_]):
                yield from self._of_call(node)
            case ast.Assign(targets=[ast.Attribute(attr=name)], value=value) if name in SHOWN:
                yield [value]
            case ast.Return(value=ast.expr() as value) if function is not None and function.name in RETURNING:
                yield [value]
            case ast.Constant(value=str(text)) | ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]) if whole:
                if " " in text and "\n" not in text and not text[0].isupper():
                    yield [node]

    def _of_call(self, call: ast.Call) -> Iterator[list[ast.expr]]:
        name = getattr(call.func, "id", None) or getattr(call.func, "attr", "")
        if isinstance(call.func, ast.Attribute) and self._is_logger(call.func.value):
            first, *rest = call.args
            if name == "log" and not _is_below_warning(ast.unparse(first)):
                first, *rest = rest
            elif name not in LOG_METHODS:
                return
            if re.fullmatch(r"'[%s;: ]*'", ast.unparse(first)):
                yield from ([one] for one in rest)
            else:
                yield [first]
        elif name in TO_ZEEK:
            yield call.args
        elif name == "report" and ast.unparse(call.args[0]) in LEVELS:  # to the collector's reporter.log
            yield call.args[1:2]
        elif re.fullmatch(r"(?!Lookup)([A-Z]\w*)?(Error|Unavailable)", name):
            yield call.args[:2]  # an OSError has a number or a path before its text, or a path after it

    def _is_logger(self, node: ast.expr) -> bool:
        name = getattr(node, "id", None) or getattr(node, "attr", "").removeprefix("_")
        return name in self._loggers or "getLogger" in ast.unparse(node)

    def _is_called(self, call: ast.Call, name: str) -> bool:
        """Whether a call may be one of a function here, and not of a literal's method, such as `", ".join`."""
        return name in self._functions and not isinstance(getattr(call.func, "value", None), ast.Constant)

    def _texts(self, node: ast.expr, function: Function | None, tree: ast.Module, depth: int) -> Iterator[str]:
        """What an expression can be, with `…` for parts that are not literal."""
        alternatives = _alternatives(node)
        match node:
            case _ if alternatives:
                for one in alternatives:
                    yield from self._texts(one, function, tree, depth)
            case ast.Constant() | ast.JoinedStr():
                yield from _literal(node)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                ends = list(self._texts(right, function, tree, depth))
                yield from (first + end for first in self._texts(left, function, tree, depth) for end in ends)
            case ast.Name(id=name) if depth:
                values = [*_assigned(function, name), *_assigned(tree, name, depth=1)]
                texts = [text for value in values for text in self._texts(value, function, tree, depth - 1)]
                yield from texts or self._passed(function, name, depth - 1) or [HOLE]
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if depth and self._is_called(node, name):
                texts = [text for one in self._functions[name] for text in self._returned(one, tree, depth - 1)]
                yield from (text for text in texts if " " in text)
            case ast.Attribute(value=ast.Name(), attr=name) if name.isupper():
                for other in self._trees.values():
                    for value in _assigned(other, name, depth=1):
                        yield from self._texts(value, None, other, depth)
            case _:
                yield HOLE

    def _passed(self, function: Function | None, name: str, depth: int) -> list[str]:
        """What callers pass to a function as a parameter."""
        names = [] if function is None else [one.arg for one in function.args.args]
        if function is None or name not in names or function.name.startswith("__"):
            return []
        texts: list[str] = []
        place = names.index(name) - (names[0] == "self")
        for call, caller, tree in self._calls.get(function.name, ()):
            named = [one.value for one in call.keywords if one.arg == name]
            for value in named or call.args[place : place + 1]:
                texts += self._texts(value, caller, tree, depth)
        return [text for text in texts if " " in text]

    def _returned(self, function: Function, tree: ast.Module, depth: int) -> Iterator[str]:
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and node.value is not None:
                yield from self._texts(node.value, function, tree, depth)


def _alternatives(node: ast.expr) -> Sequence[ast.expr]:
    """The expressions of which one is the value of another, if it has such."""
    match node:
        case ast.IfExp(body=body, orelse=orelse):
            return body, orelse
        case ast.BoolOp(values=values) | ast.Dict(values=values):
            return values
        case ast.Subscript(value=table):
            return (table,)
        case ast.Call(func=ast.Attribute(value=text, attr="format" | "rstrip" | "strip")):
            return (text,)
        case ast.Call(func=ast.Name(id=name), args=[text, *_]) if name in PASSED_ON_BY:
            return (text,)
    return ()


def _literal(node: ast.Constant | ast.JoinedStr) -> Iterator[str]:
    match node:
        case ast.Constant(value=str(text)):
            yield _shortened(text)
        case ast.JoinedStr(values=parts):
            yield _shortened("".join(str(one.value) if isinstance(one, ast.Constant) else HOLE for one in parts))


def _is_below_warning(level: str) -> bool:
    levels = set(re.findall("[A-Z]{4,}", level))
    return bool(levels) and levels <= {"DEBUG", "INFO"}


def _nodes(tree: ast.Module) -> Iterator[tuple[Function | None, ast.AST]]:
    """Every node that can make a text, in order, with the function that it is in."""
    left: list[tuple[Function | None, ast.AST]] = [(None, tree)]
    while left:
        function, node = left.pop()
        if isinstance(node, ast.Call | ast.Assign | ast.Return | ast.Constant | ast.JoinedStr | Function):
            yield function, node
        within = node if isinstance(node, Function) else function
        parts = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.JoinedStr):  # whose constants are parts of its text
            parts = [one for one in parts if not isinstance(one, ast.Constant)]
        left += [(within, one) for one in reversed(parts)]


def _loggers(tree: ast.Module) -> Iterator[str]:
    """The names of variables that hold a logger."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and "getLogger" in ast.unparse(node.value):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _assigned(node: ast.AST | None, name: str, depth: int = 99) -> Iterator[ast.expr]:
    """The values that are assigned to a name in a function, or at the top of a module."""
    for child in ast.iter_child_nodes(node) if node is not None else ():
        match child:
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                yield value
            case ast.AnnAssign(target=ast.Name(id=found), value=ast.expr() as value) if found == name:
                yield value
            case ast.AugAssign(target=ast.Name(id=found), value=value) if found == name:
                yield value
        if depth > 1:
            yield from _assigned(child, name, depth - 1)


def _shortened(text: str) -> str:
    """With `…` for the fields of both kinds of formats."""
    return re.sub(r"%(?:\([a-z]+\))?[-0-9.]*[a-z]|\{[^{}]*\}", HOLE, text)
