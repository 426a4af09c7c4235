"""Secrets in command lines are masked, the rest of them is not."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent.masking.command_line import CommandLine
from zeek_agent.masking.forms import SUFFIXES
from zeek_agent.masking.hints import EXAMINED_BYTES, HINTS_MAX, might_hold_secret
from zeek_agent.masking.masker import Masker
from zeek_agent.masking.names import STEMS, is_secret
from zeek_agent.masking.programs import PROGRAMS, Program
from zeek_agent.masking.shell_text import commands
from zeek_agent.masking.text_rules import MASK

HERE = Path(__file__).parent
MASKER = Masker()
SECRET = "hunter2"
UNSTORABLE = "".join(["\0", *map(chr, range(0xEF80, 0xF000))])
"""NUL, and the characters that stand for bytes which are not UTF-8."""
BLOCKS = (HERE / "secrets.txt").read_text().split("\n\n")
INNOCENT = (HERE / "innocent.txt").read_text().splitlines()


def masked(*arguments: str, cut: bool = False) -> list[str]:
    return MASKER.command_line(raw(arguments), cut=cut).arguments.split("\0")


def raw(arguments: list[str] | tuple[str, ...]) -> bytes:
    return b"".join(argument.encode() + b"\0" for argument in arguments)


def test_the_value_is_masked_and_the_option_kept() -> None:
    pairs = [block.strip().rpartition("\n=> ") for block in BLOCKS]
    assert {line: masked(*shlex.split(line)) for line, _, _ in pairs} == {
        line: shlex.split(expected) for line, _, expected in pairs
    }


def test_innocent_command_lines_stay_whole() -> None:
    lines = {line: shlex.split(line) for line in INNOCENT}
    assert {line: masked(*arguments) for line, arguments in lines.items()} == lines


def test_there_are_enough_of_both() -> None:
    assert len(INNOCENT) >= 150
    assert len(BLOCKS) >= 150
    assert len({name for program in PROGRAMS for name in program.names.split() if program.secrets}) >= 100


@pytest.mark.parametrize("block", BLOCKS)
def test_no_secret_is_left_in_a_joined_line_either(block: str) -> None:
    """As osquery has it. A value that contains blanks cannot be told from what follows it there."""
    line, _, expected = block.strip().rpartition("\n=> ")
    arguments = shlex.split(line)
    if not any(" " in argument for argument in arguments):
        assert SECRET not in MASKER.line(" ".join(arguments))
    assert MASKER.line(" ".join(shlex.split(expected))).count(SECRET) == 0


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.names.partition(" ")[0])
def test_each_option_that_a_manual_names_is_masked(program: Program) -> None:
    for name in program.names.split():
        for option in program.secrets.split():
            bare = option.rstrip(SUFFIXES)
            form = option[len(bare) :]
            value, shown = {
                "": (SECRET, MASK),
                "!": (SECRET, MASK),
                "@": (f"pass:{SECRET}", f"pass:{MASK}"),
                "~": (f"pass:{SECRET}", f"pass:{MASK}"),
                ";": (f"a=b,password={SECRET},c=d", f"a=b,password={MASK},c=d"),
                "&": (f"user:{SECRET}@host", f"user:{MASK}@host"),
                "$": (f"mysql -p{SECRET}", f"mysql -p{MASK}"),
                "^": ("password=file", "password=file"),
            }.get(form, (f"user{form}{SECRET}", f"user{form}{MASK}"))
            before = [word.replace("*", "x") for word in program.after.split()[:1]]
            before += [program.given] if program.given else []
            separator = ":" if bare.startswith("/") else "=" if bare.startswith("--") else ""
            if form == "*":
                assert masked(name, bare, SECRET, SECRET, "x") == [name, bare, MASK, MASK, "x"]
                continue
            if form == "!" or separator == ":":
                attached = [f"{bare}{separator}{value}"], [f"{bare}{separator}{shown}"]
                cases = [attached]
            else:
                cases = [([bare, value], [bare, shown])]
                if separator:
                    cases.append(([f"{bare}={value}"], [f"{bare}={shown}"]))
            for given_arguments, expected in cases:
                command = [f"/usr/bin/{name}", *before, *given_arguments, "x"]
                assert masked(*command) == [f"/usr/bin/{name}", *before, *expected, "x"]
                wrapped = masked("sudo", "sh", "-c", shlex.join(command))[-1]
                assert SECRET not in wrapped
                assert wrapped.startswith(f"/usr/bin/{name} ")


@pytest.mark.parametrize("program", [program for program in PROGRAMS if program.positional or program.follows])
def test_each_argument_that_a_manual_names_is_masked(program: Program) -> None:
    forms = {
        "": SECRET,
        ":": f"u:{SECRET}",
        "=": f"k={SECRET}",
        "/": f"u/{SECRET}@d",
        "/=": f"target=u/{SECRET}",
        "&": f"u:{SECRET}@h",
        ">": f">{SECRET}",
        "p=": f"h=1,p={SECRET},u=a",
        "\\": SECRET,
    }
    for name in program.names.split():
        before = [word.replace("*", "x") for word in program.after.split()[:1]]
        for word in program.follows.split():
            value = forms[program.follows_form]
            assert masked(name, *before, word, value, "x") == [name, *before, word, value.replace(SECRET, MASK), "x"]
        for place in program.positional:
            value = forms[program.positional_form]
            given = [program.given] if program.given else []
            result = masked(name, *given, *before, *["x"] * ((place or 1) - 1), value, "x")
            assert SECRET not in " ".join(result)
            assert result[0] == name


def test_each_program_names_its_source() -> None:
    for program in PROGRAMS:
        assert len(program.source) > 10
        assert (
            program.secrets
            or program.positional
            or program.follows
            or program.last_with
            or program.plain
            or program.settings
        )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["curl", "https://alice:hunt"], ["curl", "https://alice:***"]),
        (["curl", "http://host:80"], ["curl", "http://host:80"]),
        (["x", "--password=hun"], ["x", "--password=***"]),
        (["x", '{"password": "hun'], ["x", '{"password": "***']),
        (["x", "ghp_abc"], ["x", "***"]),
        (["sh", "-c", "mysql -p'hun"], ["sh", "-c", "mysql -p***"]),
        (["x", "-----BEGIN PRIVATE KEY-----\nMII"], ["x", "***"]),
    ],
)
def test_the_beginning_of_a_secret_is_masked_where_arguments_are_cut(arguments: list[str], expected: list[str]) -> None:
    assert masked(*arguments, cut=True) == expected


def test_a_line_of_more_hints_than_are_examined_is_masked_after_them() -> None:
    many = ["tool", *["--token=x"] * (HINTS_MAX + 10)]
    result = masked(*many)
    assert result[1 : HINTS_MAX + 1] == ["--token=***"] * HINTS_MAX
    assert result[HINTS_MAX + 1 :] == [MASK] * 10
    assert masked("tool", "--password=" + "pw=a " * 20_000) == ["tool", MASK]


def test_of_a_long_line_the_rest_is_masked_only_if_it_might_hold_a_secret() -> None:
    long = ["tool", "--token", "a", *["x" * 1000] * 100]
    assert masked(*long) == ["tool", "--token", MASK, *long[3:]]
    result = masked(*long, "--password", SECRET)
    assert len(result) == len(long) + 2
    assert result[:50] == ["tool", "--token", MASK, *long[3:50]]
    assert set(result[-10:]) == {MASK}
    assert sum(argument != MASK for argument in result) * 1000 < EXAMINED_BYTES + 2_000


@pytest.mark.long
def test_the_time_for_a_hostile_line_is_bounded() -> None:
    """In a process of its own that may use a minute for all lines; with quadratic time, each would take minutes."""
    code = """
import resource
from zeek_agent.masking.masker import Masker
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for piece in ("pw=a ", "://a:b@", "authorization: ", '"password":"', "password=$((", "sh -c '", "mysql -pX;", "pass_",
              "-----BEGIN PRIVATE KEY-----", "password=.*", 'password="\\\\\\\\', "a=b,password=", "Bearer a1b2c3d4 ",
              "echo a|chpasswd;", "passwd|", "(echo a)|passwd;", "{ echo;}|su;", "passwd<<A\\n", '"$(a ',
              "password: |\\n", "  ", "<password ", "'mysql -p',", "password for a ", "a:b@tcp(",
              "eyJ", "'", '"', "\\\\"):
    for prefix in ("tool\\0", "sh\\0-c\\0", "python3\\0-c\\0", "mount\\0-o\\0password=x,"):
        for text in (piece * (200_000 // len(piece)), (piece + "\\0") * 40_000):
            Masker().command_line((prefix + text).encode(), cut=True)
            Masker().line((prefix + text).replace("\\0", " "))
print("done")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("done\n", "")


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters=UNSTORABLE), max_size=30), min_size=1, max_size=8)
)
def test_any_arguments_are_as_many_as_before(arguments: list[str]) -> None:
    line = MASKER.command_line(raw(arguments))
    argv = line.argv
    assert argv is not None
    assert len(argv) == len(arguments)
    assert line.cmdline == " ".join(argv)
    assert (line.stored_argv == "") is (line.cmdline.split(" ") == argv)
    if MASK not in line.arguments:
        assert argv == arguments


@pytest.mark.parametrize(
    "around", [["nice", "-n", "5"], ["timeout", "10"], ["sudo", "-n"], ["nohup"], ["env", "A=b"]], ids=" ".join
)
def test_arguments_around_a_secret_do_not_reveal_it(around: list[str]) -> None:
    """Harmless options in front of a command that is run by another one change nothing."""
    for block in BLOCKS:
        line = shlex.split(block.strip().rpartition("\n=> ")[0])
        for command in (line, [*around, *line]):
            assert [argument for argument in masked(*command) if SECRET in argument] == []


@given(st.text("aA_-.1", max_size=8), st.sampled_from(["password", "Token", "API_KEY", "clientSecret", "pw", "psk"]))
def test_each_name_of_a_secret_gets_a_closer_look(prefix: str, word: str) -> None:
    name = f"{prefix}{word}"
    if is_secret(name):
        assert any(stem in name.lower() for stem in STEMS)
        assert might_hold_secret(f"x\0{name}=1".encode())
        assert might_hold_secret(f"x\0--{name}\x001".encode())


@pytest.mark.parametrize(
    "name",
    ["password-file", "token_url", "key", "public-key", "keyid", "PWD", "reset-password", "bypass", "max-tokens"],
)
def test_names_of_other_settings_are_none_of_secrets(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("mysql -phunter2 shop", "mysql -p*** shop"),
        ("curl -u alice:hunter2 https://x", "curl -u alice:*** https://x"),
        ("worker: tool --password hunter2 run", "worker: tool --password *** run"),
        ("postgres: app shop 10.0.0.1(5432) idle", "postgres: app shop 10.0.0.1(5432) idle"),
        ("nginx: master process /usr/sbin/nginx -g daemon on;", "nginx: master process /usr/sbin/nginx -g daemon on;"),
        ("/opt/Password Manager/bin/token", "/opt/Password Manager/bin/token"),
    ],
)
def test_the_title_that_a_process_gave_itself_is_read_as_a_line(title: str, expected: str) -> None:
    assert masked(title) == [expected]
    assert masked(title, "", "") == [expected, "", ""]


def test_a_shells_text_is_read_as_the_shell_reads_it() -> None:
    text = """a 'b c'"d\\"e"\\ f; g|h && (i 'j k"""
    found = [([word.value for word in command.words], command.reads_pipe) for command in commands(text)]
    assert found == [(["a", 'b cd"e f'], False), (["g"], False), (["h"], True), (["i", "j k"], False)]
    for words, _ in commands(text):
        for word in words:
            assert shlex.split(text[word.start : word.end] + ("'" if word.value == "j k" else "")) == [word.value]


def test_a_cut_command_line_has_no_vector() -> None:
    assert CommandLine("a\0b").argv == ["a", "b"]
    assert CommandLine("").argv == [""]
    assert CommandLine("a\0b", cut=True).argv is None
    assert CommandLine("a\0b", cut=True).cmdline == "a b …"
