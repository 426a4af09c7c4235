"""Secrets in text, whatever program it is for: settings, headers, JSON members, URLs and tokens of known form."""

from __future__ import annotations

import re
from enum import Enum, auto
from functools import cache
from typing import Any, Final

import re2

from zeek_agent.masking.names import STEMS, is_key, is_secret, is_secret_setting

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
    "zat1_",  # enrolment tokens of this agent (fleet/tokens.py)
)  # fmt: skip
"""Beginnings by which the issuers' documentation recognizes a token."""

_STEM: Final = "|".join(STEMS)
_NAME: Final = _compiled(rf"(?i)([\w.\-]*(?:{_STEM})[\w.\-]*)(\\?[\"']?)\]?\s*(=>|:=|==?|:|%3[dD])\s*")
_HEADER: Final = _compiled(r"(?i)\b((?:proxy-)?authorization|(?:set-)?cookie2?)(\\?[\"']?)\s*(=|:)\s*")
_CREDENTIALS: Final = _compiled(r"://([^/?#\s:@'\"]*)(?::([^/?#\s]*))?@")
_UNESCAPED_CREDENTIALS: Final = _compiled(r"://[^/?#\s:@'\"]*:([^/?#\s@]*[^/?#\s@0-9][^/?#\s@]*[/?#][^\s@'\"]*)@")
"""A password with characters that the URL should have as %2F and the like; a port has digits only."""
_DSN: Final = _compiled(r"[\w.\-]+:([^\s@'\"]+)@(?:tcp|tcp6|udp|unix|cloudsql)?\(")
"""Data source names of Go: `user:password@tcp(host:3306)/database`."""
_JDBC_ORACLE: Final = _compiled(r"(?i)jdbc:oracle:\w+:[^/\s@'\"]+/([^\s@'\"]+|\"[^\"]*\")@")
_SCHEMES: Final = _compiled(
    r"(?i)\b(bearer|basic|digest|negotiate|token|apikey|splunk|ssws|aws4-hmac-sha256|genericpass)[ +]+"
    r"([A-Za-z0-9\-._~+/=:]{6,})"
)
_TOKENS: Final = _compiled(
    rf"\b(?:{'|'.join(map(re.escape, TOKEN_PREFIXES))})[\w.\-+/=]{{8,}}"
    r"|\beyJ[\w\-]{8,}\.[\w\-]{4,}(?:\.[\w\-]*)?"
    r"|-----BEGIN [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----(?s:.*?)(?:-----END [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----|$)"
    r"|\bsk-[A-Za-z0-9]{20,}"
    r"|hooks\.slack\.com/services/[\w/]+|discord(?:app)?\.com/api/webhooks/\d+/[\w\-]+|\bbot\d{6,}:[\w\-]{20,}"
)
_SQL: Final = _compiled(
    r"(?i)\b(?:password(?:\s+for\s+[^=]{1,200}=|\s*[=(]|\s)|identified\s+(?:with\s+\S+\s+)?(?:by|as)(?:\s+values|\s+password)?)"
    r"\s*(?:password\s*\(\s*)?(?:[EN]|U&)?('|\"|\$\w*\$)"
)
_PRAGMA: Final = _compiled(r"(?i)\bpragma\s+(?:hex)?(?:re)?key\s*=\s*[\"']?([^\"';]+)")
"""A key of SQLCipher."""
_SQL_WORD: Final = _compiled(r"(?i)\b(?:create|alter)\s+user\s+\S+\s+identified\s+by\s+([^\s'\";]+)")
"""A password as Oracle takes it: without quotes."""
_CALL: Final = _compiled(r"\bauth\s*=?\s*\(\s*(?:\"[^\"]*\"|'[^']*')\s*,\s*[\"']([^\"']+)")
"""`db.auth('user', 'password')`, and `auth=('user', 'password')` of Python's requests."""
_ELEMENT: Final = _compiled(rf"(?i)<(?:[\w\-]*:)?([\w.\-]*(?:{_STEM})[\w.\-]*)(?:\s[^<>]*)?>([^<]+)")
_NETRC: Final = _compiled(r"\b(?:login|machine)\s+\S+\s+password\s+([^\s'\"]+)")
_NPM_AUTH: Final = _compiled(r":_auth=([^\s'\"]+)")
_MEMBERS: Final = _compiled(
    rf"(?i)[\"'](?:name|key)[\"']\s*:\s*[\"']([\w.\-]*(?:{_STEM})[\w.\-]*)[\"']\s*,\s*[\"']value[\"']\s*:\s*[\"']((?:[^\"'\\]|\\.)+)"
    rf"|\bname:\s*([\w.\-]*(?:{_STEM})[\w.\-]*)\s*\n\s*value:\s*([^\n]+)"
)
"""An environment as container engines have it: `{"name": "PASSWORD", "value": "…"}`."""
_ACCESS_KEY: Final = _compiled(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}[:,]([^\s'\"]+)")
_QUERY: Final = _compiled(
    r"(?i)[?&](?:key|sig|signature|x-amz-signature|x-goog-signature|auth|code|state|pin)=([^&#\s'\"]{8,})"
)
_CUT_CREDENTIALS: Final = _compiled(r"://[^/?#\s:@]*:([^/?#\s@]*)$")
_CUT_TOKEN: Final = _compiled(rf"\b(?:{'|'.join(map(re.escape, TOKEN_PREFIXES))}|eyJ)\S*$")
_AUTH_SCHEME: Final = re.compile(
    r"(?:bearer|basic|digest|negotiate|token|apikey|splunk|ssws|aws4-hmac-sha256|genericpass)\s+", re.IGNORECASE
)
_LITERALS: Final = re.compile(r"(?:true|false|null|none|undefined)?(?=[,}\s\]]|$)", re.IGNORECASE)
_REFERENCE: Final = re.compile(
    r"\$(?:\w+|\{\w+(?::?[-+=]|:?\?[^}]*)?\}|\(.*)$|`|\$\{\{.*|<[\w -]*>$|%\w+%$|\{\{.*", re.DOTALL
)
_PATTERN: Final = re.compile(r"[.*+?^$\\\[\](){}|/#,]{1,20}[A-Za-z]?[.*+?^$\\\[\](){}|/#,]{0,20}")
_COLUMN_TYPES: Final = re.compile(
    r"(?:string|text|integer|bigint|digest|binary|boolean|uuid|references|str|int|bytes|Optional)\b"
)
"""What follows the name of a column or parameter in generators and type annotations: `token:string`."""
_DIRECTORY: Final = re.compile(r"[/~.$%]|[A-Za-z]:[\\/]|$")
_PREFIXED_QUOTE: Final = re.compile(r"(?:[ENrRbBfFuU]|[bB][rR])(?=[\"'])")
_FILE: Final = re.compile(
    r"(?:~|\.{1,2}|/[a-z]+)/[\w./-]*$|.*\.(?:pem|key|crt|cer|der|p12|pfx|jks|json|ya?ml|txt|conf|asc|gpg|pub)$",
    re.DOTALL,
)
_DIRECTORIES: Final = frozenset({"PWD", "Pwd", "pwd"})
"""The working directory's variable, and ODBC's name of a password."""
_INDENT_MAX: Final = 64
_SPACES: Final = " \t\r\n"
_ENDS: Final = {"?": "&#", "&": "&#", ";": ";", ",": ",", "/": "/", "|": "|", "#": "#"}
"""What ends the value of a setting, by what is in front of its name: as in a query, a list, or sed's `s/…/…/`."""

HINT: Final = (
    rf"(?i:(?:{_STEM})[\w.\-]*\\?[\"']?\]?\s*(?:[=:>\s]|%3d)|authorization|cookie|jdbc:oracle"
    r"|://[^/?#\s:@\x00]*(?::[^/?#\s\x00]*)?@|://[^/?#\s:@\x00]*:[^\s@\x00]*@|@\w*\(|\bauth\s*=?\s*\("
    r"|(?:bearer|basic|digest|negotiate|token|apikey|splunk|ssws)[ +]"
    r"|pragma\s|:_auth=|[\"']value[\"']\s*:|identified\s|[?&](?:key|sig|[\w-]*signature|auth|code|state|pin)="
    r"|chpasswd|smbpasswd|cryptsetup|kinit|newusers|-stdin|sudo\s+-\w*S|<<|\|\s*su\b|\.pgpass|\.netrc|credentials)"
    rf"|{'|'.join(map(re.escape, TOKEN_PREFIXES))}|eyJ|PRIVATE KEY|AKIA|ASIA|\bsk-[A-Za-z0-9]{{20}}"
    r"|hooks\.slack|/api/webhooks/|\bbot\d{6}"
)
"""Is in any argument in which this module could mask something."""
OPTION_HINT: Final = rf"(?i:(?:{_STEM})[\w.\-]*[\"']?\x00|-(?:auth|creds|dsn|proxy)[=\x00])"
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
    NAMES = auto()
    """A name such as `token:tag`, in which a setting has a blank after its colon."""


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
        _mask_settings(text, spans, kind, shell=shell, joined=joined, whole=whole)
        lower = text.lower()
        if "authorization" in lower or "cookie" in lower:
            _mask_headers(text, spans, joined, prose=kind is Kind.PROSE)
    if "://" in text:
        _mask_urls(text, spans, cut)
    if " " in text or "+" in text:
        _mask_schemes(text, spans, kind)
    if kind is not Kind.PROSE:
        _mask_statements(text, spans, shell)
    _mask_tokens(text, spans, cut)
    return spans.applied(text)


def _mask_statements(text: str, spans: Spans, shell: bool) -> None:
    """SQL, calls, data source names and XML."""
    for match in _SQL.finditer(text):
        end = _closing(text, match.end(), match[1])
        if not _is_reference(text[match.end() : end], shell):
            spans.add(match.end(), end)
    for match in _MEMBERS.finditer(text):
        if is_secret(match[1] or match[3]):
            spans.add(*match.span(2 if match[1] else 4))
    for pattern in (_SQL_WORD, _PRAGMA, _CALL, _NETRC, _ACCESS_KEY, _NPM_AUTH, _DSN, _JDBC_ORACLE):
        for match in pattern.finditer(text):
            spans.add(*match.span(1))
    if "<" in text:
        for match in _ELEMENT.finditer(text):
            if is_secret(match[1]):
                spans.add(*match.span(2))


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


def _mask_settings(text: str, spans: Spans, kind: Kind, *, shell: bool, joined: bool, whole: bool) -> None:
    masked_until = 0
    for match in _NAME.finditer(text):
        is_directory = match[1] in _DIRECTORIES
        if match.start() < masked_until or not (is_directory or is_secret_setting(match[1])):
            continue
        if match[3] == ":" and not match[2] and (kind is Kind.PROSE or not _begins_line(text, match, joined)):
            continue
        if kind is Kind.PROSE and match[3] == "=>":
            continue
        if kind is Kind.NAMES and match[0].endswith(":") and (joined or match.start() == 0):
            continue
        if joined and match[1].startswith("-") and match[3] == "=":  # an option, which its program explains
            continue
        start, end = _value(text, match, joined, whole)
        value = text[start:end]
        masked_until = end
        if not value or _is_reference(value, shell) or (match[3] == ":" and _COLUMN_TYPES.match(value)):
            continue
        if (is_directory and _DIRECTORY.match(value)) or (is_key(match[1]) and is_file(value)):
            continue
        spans.add(start, end)


def _begins_line(text: str, match: Any, joined: bool) -> bool:
    """Whether `name:` begins a header or a member there, instead of being part of a sentence or an address."""
    at = match.start()
    blanks = at
    while blanks > 0 and at - blanks < _INDENT_MAX and text[blanks - 1] in " \t":
        blanks -= 1
    before = text[blanks - 1 : blanks] if blanks else ""
    if before == "/" and at == 1:  # /password:VALUE, but not a path such as /token:/token
        return text.find("/", 1) < 0
    if before in {"", "\n", "{", ",", ";", "("} or (before == "-" and text[max(blanks - 2, 0) : blanks - 1] in "\n "):
        return True
    if at - blanks == _INDENT_MAX or (joined and text[at - 1] in " ="):
        return True
    return (at > blanks and text[match.end() : match.end() + 1] in {'"', "'"}) or (before == "-" and at <= 2)


def _value(text: str, match: Any, joined: bool, whole: bool) -> tuple[int, int]:
    """Where the value of a setting begins and ends."""
    start = match.end()
    if (prefix := _PREFIXED_QUOTE.match(text, start)) is not None:
        start = prefix.end()
    opener = text[start : start + 2] if text[start : start + 1] == "\\" else text[start : start + 1]
    if opener and opener[-1] in "\"'":
        start += len(opener)
        return start, _closing(text, start, opener)
    if match[3] == ":" and not match[2]:
        if text[start : start + 1] in {"|", ">"} and (block := _block(text, match)) is not None:
            return block
        start = _after_scheme(text, start)
    elif match[3] in {":", "=>"} and opener[:1] == "[" and not match[1].endswith("s"):
        return start + 1, _closing(text, start, "]")
    elif match[3] == "=" and opener[:1] == "{" and text[start : start + 2] != "{{":  # a value of ODBC
        return start + 1, _closing(text, start, "}")
    elif match[3] == ":" and (opener[:1] in {"[", "{"} or _LITERALS.match(text, start) is not None):
        return start, start  # not a string in JSON
    return start, _first_of(text, start, _ends(text, match, joined, whole))


def _block(text: str, match: Any) -> tuple[int, int] | None:
    """The lines of a block in YAML (`name: |`), which are indented more than its name."""
    start = text.find("\n", match.end()) + 1
    if start == 0 or start - match.end() > 4:
        return None
    name_at = match.start(1)
    indent = name_at - (text.rfind("\n", 0, name_at) + 1)
    end = start
    while end < len(text):
        line_end = text.find("\n", end)
        line = text[end : len(text) if line_end < 0 else line_end]
        if line.strip() and len(line) - len(line.lstrip(" ")) <= indent:
            break
        end += len(line) + 1
    return start, min(end, len(text))


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


def _mask_headers(text: str, spans: Spans, joined: bool, *, prose: bool) -> None:
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
            in_sentence = prose and match.start() > 0 and not _looks_random(text[start:end].partition(" ")[0])
            if not in_sentence and not _is_reference(text[start:end], shell=True):
                spans.add(start, end)


def _mask_urls(text: str, spans: Spans, cut: bool) -> None:
    for match in _CREDENTIALS.finditer(text):
        if match.start(2) >= 0:
            if match[2] and not _is_reference(match[2], shell=True):
                spans.add(*match.span(2))
            if _looks_random(match[1]) or match[2] == "x-oauth-basic":  # GitHub: a token in the user's place
                spans.add(*match.span(1))
        elif _looks_random(match[1]):
            spans.add(*match.span(1))
    for match in _UNESCAPED_CREDENTIALS.finditer(text):
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
    while at > start and opener in "\"'" and _backslashes(text, start, at) % 2:
        at = text.find(opener, at + 1)
    return len(text) if at < 0 else at


def _backslashes(text: str, start: int, at: int) -> int:
    """How many backslashes are directly in front of a place."""
    first = at
    while first > start and text[first - 1] == "\\":
        first -= 1
    return at - first


def _first_of(text: str, start: int, ends: str) -> int:
    match = _any_of(ends).search(text, start) if ends else None
    return len(text) if match is None else match.start()


@cache
def _any_of(characters: str) -> re.Pattern[str]:
    return re.compile(f"[{re.escape(characters)}]")


def _is_reference(value: str, shell: bool) -> bool:
    """Whether a value is masked already, or a shell's variable, a template's place or a pattern instead of a secret."""
    return (
        value == MASK
        or value.startswith("\\)")
        or (shell and _REFERENCE.match(value) is not None)
        or _PATTERN.fullmatch(value) is not None
    )


def is_file(value: str) -> bool:
    """Whether the value of a key is the name of a file; Base64 of a key has capitals and no such ending."""
    return _FILE.match(value) is not None


def _looks_random(value: str) -> bool:
    """Whether it is a generated token and not a name or a word."""
    return len(value) >= 16 and any(map(str.isdigit, value)) and any(map(str.isalpha, value))
