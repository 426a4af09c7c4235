"""Secrets in text, whatever program it is for: settings, headers, JSON members, URLs and tokens of known form."""

from __future__ import annotations

import re
from enum import Enum, auto
from functools import cache
from typing import Any, Final

import re2

from zeek_agent.masking.names import STEMS, is_secret

MASK: Final = "***"


def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 32 << 20
    return re2.compile(pattern, options)


TOKEN_PREFIXES: Final = (
    "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_",  # GitHub: "About authentication to GitHub", token formats
    "glpat-", "gldt-", "glrt-", "glcbt-", "glptt-",  # GitLab: "Token overview", token prefixes
    "xoxb-", "xoxp-", "xoxa-", "xoxr-", "xoxs-", "xapp-",  # Slack: "Token types"
    "sk_live_", "rk_live_", "sk_test_", "whsec_",  # Stripe: "API keys"
    "hvs.", "hvb.", "hvr.",  # HashiCorp Vault: "Tokens", prefixes
    "npm_", "pypi-AgEI", "dop_v1_", "doo_v1_", "dckr_pat_", "AIza", "ya29.", "SG.", "shpat_", "sk-ant-", "sk-proj-",
    "tskey-", "glsa_", "AGE-SECRET-KEY-1", "ATATT3x",
)  # fmt: skip
"""Beginnings by which the issuers' documentation recognizes a token."""

_STEM: Final = "|".join(STEMS)
_NAME: Final = _compiled(rf"(?i)([\w.\-]*(?:{_STEM})[\w.\-]*)(\\?[\"']?)\]?\s*(=|:|%3[dD])\s*")
_HEADER: Final = _compiled(r"(?i)\b((?:proxy-)?authorization|(?:set-)?cookie2?)(\\?[\"']?)\s*(=|:)\s*")
_CREDENTIALS: Final = _compiled(r"://([^/?#\s:@'\"]*)(?::([^/?#\s]*))?@")
_SCHEMES: Final = _compiled(
    r"(?i)\b(bearer|basic|digest|negotiate|token|apikey|splunk|ssws|aws4-hmac-sha256|genericpass)[ +]+"
    r"([A-Za-z0-9\-._~+/=:]{6,})"
)
_TOKENS: Final = _compiled(
    rf"\b(?:{'|'.join(map(re.escape, TOKEN_PREFIXES))})[\w.\-+/=]{{8,}}"
    r"|\beyJ[\w\-]{8,}\.[\w\-]{4,}(?:\.[\w\-]*)?"
    r"|-----BEGIN [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----(?s:.*?)(?:-----END [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----|$)"
    r"|hooks\.slack\.com/services/[\w/]+|discord(?:app)?\.com/api/webhooks/\d+/[\w\-]+|\bbot\d{6,}:[\w\-]{20,}"
)
_SQL: Final = _compiled(r"(?i)\b(?:password|identified\s+(?:with\s+\S+\s+)?(?:by|as)(?:\s+password)?)\s*[=(]?\s*(')")
_QUERY: Final = _compiled(
    r"(?i)[?&](?:key|sig|signature|x-amz-signature|x-goog-signature|code|state|pin)=([^&#\s'\"]{8,})"
)
_CUT_CREDENTIALS: Final = _compiled(r"://[^/?#\s:@]*:([^/?#\s@]*)$")
_CUT_TOKEN: Final = _compiled(rf"\b(?:{'|'.join(map(re.escape, TOKEN_PREFIXES))}|eyJ)\S*$")
_AUTH_SCHEME: Final = re.compile(
    r"(?:bearer|basic|digest|negotiate|token|apikey|splunk|ssws|aws4-hmac-sha256|genericpass)\s+", re.IGNORECASE
)
_LITERALS: Final = re.compile(r"(?:true|false|null|none|undefined)?(?=[,}\s\]]|$)", re.IGNORECASE)
_REFERENCE: Final = re.compile(r"\$(?:\w+|\{\w+\}|\(.*)$|\$\{\{.*|<[\w -]*>$|%\w+%$|\{\{.*", re.DOTALL)
_PATTERN: Final = re.compile(r"[.*+?^$\\\[\](){}|/#,]{1,20}[A-Za-z]?[.*+?^$\\\[\](){}|/#,]{0,20}")
_COLUMN_TYPES: Final = re.compile(r"(?:string|text|integer|bigint|digest|binary|boolean|uuid|references|str|int)\b")
"""What follows the name of a column or parameter in generators and type annotations: `token:string`."""
_SPACES: Final = " \t\r\n"
_ENDS: Final = {"?": "&#", "&": "&#", ";": ";", ",": ",", "/": "/", "|": "|", "#": "#"}
"""What ends the value of a setting, by what is in front of its name: as in a query, a list, or sed's `s/…/…/`."""

HINT: Final = (
    rf"(?i:(?:{_STEM})[\w.\-]*\\?[\"']?\]?\s*(?:[=:\s]|%3d)|authorization|cookie"
    r"|://[^/?#\s:@\x00]*(?::[^/?#\s\x00]*)?@|(?:bearer|basic|digest|negotiate|token|apikey|splunk|ssws)[ +]"
    r"|identified\s|[?&](?:key|sig|[\w-]*signature|code|state|pin)=|chpasswd|smbpasswd|cryptsetup|kinit|newusers|-stdin|sudo\s+-\w*S)"
    rf"|{'|'.join(map(re.escape, TOKEN_PREFIXES))}|eyJ|PRIVATE KEY|hooks\.slack|/api/webhooks/|\bbot\d{{6}}"
)
"""Is in any argument in which this module could mask something."""
OPTION_HINT: Final = rf"(?i:(?:{_STEM})[\w.\-]*[\"']?\x00)"
"""Is in any argument that could be an option whose value is the next argument."""


class Spans:
    """The parts of a text to mask, in any order."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []

    def add(self, start: int, end: int) -> None:
        if end > start:
            self._spans.append((start, end))

    def applied(self, text: str) -> str:
        """The text with each part replaced by one mask."""
        if not self._spans:
            return text
        parts, position = [], 0
        for start, end in sorted(self._spans):
            if start >= position:
                parts += [text[position:start], MASK]
            position = max(position, end)
        return "".join([*parts, text[position:]])


class Kind(Enum):
    """What a text is, which decides what in it can be a secret."""

    DATA = auto()
    PROSE = auto()
    """A message, in which `token: …` is no header."""
    PATTERN = auto()
    """A pattern to search for, in which `password=` is what is searched for."""


def masked_text(
    text: str,
    kind: Kind = Kind.DATA,
    *,
    shell: bool = False,
    cut: bool = False,
    joined: bool = False,
    whole: bool = True,
) -> str:
    """The text with secrets masked.

    `shell`: the text is or was part of a shell's, so that `$NAME` is a reference. `cut`: it is incomplete at its end.
    `joined`: it is a line of several arguments. `whole`: what begins with `NAME=` has the rest as its value.
    """
    if len(text) < 3:
        return text
    spans = Spans()
    if kind is not Kind.PATTERN and ("=" in text or ":" in text or "%3" in text):
        whole = whole and not joined
        _mask_settings(text, spans, shell=shell, prose=kind is Kind.PROSE, joined=joined, whole=whole)
        lower = text.lower()
        if "authorization" in lower or "cookie" in lower:
            _mask_headers(text, spans, joined)
    if "://" in text:
        _mask_urls(text, spans, cut)
    if " " in text or "+" in text:
        _mask_schemes(text, spans, kind)
    if "'" in text:
        for match in _SQL.finditer(text):
            spans.add(match.end(), _closing(text, match.end(), "'"))
    _mask_tokens(text, spans, cut)
    return spans.applied(text)


def _mask_schemes(text: str, spans: Spans, kind: Kind) -> None:
    for match in _SCHEMES.finditer(text):
        alone = match.span() == (0, len(text)) and kind is Kind.DATA
        if _looks_random(match[2]) or (match[1] in {"Bearer", "Basic"} and (alone or not match[2].isalpha())):
            spans.add(*match.span(2))


def _mask_tokens(text: str, spans: Spans, cut: bool) -> None:
    for match in _TOKENS.finditer(text):
        spans.add(*match.span())
    if cut and (match := _CUT_TOKEN.search(text)) is not None:
        spans.add(*match.span())


def _mask_settings(text: str, spans: Spans, *, shell: bool, prose: bool, joined: bool, whole: bool) -> None:
    masked_until = 0
    for match in _NAME.finditer(text):
        if match.start() < masked_until or not is_secret(match[1].rpartition(".")[2] or match[1]):
            continue
        if match[3] == ":" and not match[2] and (prose or not _begins_line(text, match.start(), joined)):
            continue
        if joined and match[1].startswith("-") and match[3] == "=":  # an option, which its program explains
            continue
        start, end = _value(text, match, joined, whole)
        value = text[start:end]
        if not value or _is_reference(value, shell) or (match[0].endswith(":") and _COLUMN_TYPES.match(value)):
            continue
        masked_until = end
        spans.add(start, end)


def _begins_line(text: str, at: int, joined: bool) -> bool:
    """Whether `name:` begins a header or a member there, instead of being part of a sentence or an address."""
    before = text[max(at - 2, 0) : at].rstrip(" \t")[-1:]
    if before == "/" and at == 1:  # /password:VALUE, but not a path such as /token:/token
        return text.find("/", 1) < 0
    return (
        at == 0 or before in {"\n", "{", ",", ";"} or (before == "-" and at <= 2) or (joined and text[at - 1] in " =")
    )


def _value(text: str, match: Any, joined: bool, whole: bool) -> tuple[int, int]:
    """Where the value of a setting begins and ends."""
    start = match.end()
    opener = text[start : start + 2] if text[start : start + 1] == "\\" else text[start : start + 1]
    if opener and opener[-1] in "\"'":
        start += len(opener)
        return start, _closing(text, start, opener)
    if match[3] == ":" and not match[2]:
        start = _after_scheme(text, start)
    elif match[3] == ":" and (text[start : start + 1] in {"[", "{"} or _LITERALS.match(text, start) is not None):
        return start, start  # not a string in JSON
    return start, _first_of(text, start, _ends(text, match, joined, whole))


def _ends(text: str, match: Any, joined: bool, whole: bool) -> str:
    """The characters that end the value of a setting without quotes."""
    name_at = match.start(1)
    before = text[name_at - 1] if name_at else ""
    if match[3] == ":":
        if match[2]:
            return ",}] \n"
        return _SPACES if joined else ",}\n" if before in {"{", ","} else "\n"
    if match[2]:
        return _SPACES + ",;&"
    if name_at <= 2 and whole and text[:name_at].strip("-") == "":
        return ""
    return before if before in {'"', "'"} else _ENDS.get(before, ";&") + _SPACES + "\"'"


def _mask_headers(text: str, spans: Spans, joined: bool) -> None:
    masked_until = 0
    for match in _HEADER.finditer(text):
        start = match.end()
        if start < masked_until:
            continue
        opener = text[start : start + 1]
        if match[2] and opener and opener in "\"'":
            start = _after_scheme(text, start + 1)
            masked_until = _closing(text, start, opener)
            spans.add(start, masked_until)
        else:
            start = _after_scheme(text, start)
            end = _first_of(text, start, _SPACES + "\"'" if joined else "\n" if match.start() == 0 else "\n'\"")
            masked_until = end
            if not _is_reference(text[start:end], shell=True):
                spans.add(start, end)


def _mask_urls(text: str, spans: Spans, cut: bool) -> None:
    for match in _CREDENTIALS.finditer(text):
        if match.start(2) >= 0:
            if match[2] and not _is_reference(match[2], shell=True):
                spans.add(*match.span(2))
        elif _looks_random(match[1]):
            spans.add(*match.span(1))
    for match in _QUERY.finditer(text):
        if _looks_random(match[1]):
            spans.add(*match.span(1))
    if cut and (match := _CUT_CREDENTIALS.search(text)) is not None and not match[1].isdigit():
        spans.add(*match.span(1))


def _after_scheme(text: str, start: int) -> int:
    """Past `Bearer ` and the like, which is public."""
    match = _AUTH_SCHEME.match(text, start)
    return start if match is None else match.end()


def _closing(text: str, start: int, opener: str) -> int:
    """Where a quoted text ends; at the end of the text if it is not closed."""
    at = text.find(opener, start)
    while at > start and len(opener) == 1 and text[at - 1] == "\\" and (at < start + 2 or text[at - 2] != "\\"):
        at = text.find(opener, at + 1)
    return len(text) if at < 0 else at


def _first_of(text: str, start: int, ends: str) -> int:
    match = _any_of(ends).search(text, start) if ends else None
    return len(text) if match is None else match.start()


@cache
def _any_of(characters: str) -> re.Pattern[str]:
    return re.compile(f"[{re.escape(characters)}]")


def _is_reference(value: str, shell: bool) -> bool:
    """Whether a value is masked already, or a shell's variable, a template's place or a pattern instead of a secret."""
    return value == MASK or (shell and _REFERENCE.match(value) is not None) or _PATTERN.fullmatch(value) is not None


def _looks_random(value: str) -> bool:
    """Whether it is a generated token and not a name or a word."""
    return len(value) >= 16 and any(map(str.isdigit, value)) and any(map(str.isalpha, value))
