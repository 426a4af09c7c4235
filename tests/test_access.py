"""What statements may see: which files and tables, and what of command lines is hidden."""

from __future__ import annotations

import pytest

from zeek_agent.access import AccessPolicy, Contents, ShownFiles
from zeek_agent.access_defaults import PATHS_DENY
from zeek_agent.config.sections import AccessSettings
from zeek_agent.errors import UsageError

DENIED = [
    "/etc/shadow",
    "/etc/shadow-",
    "//etc//shadow",
    "/etc/../etc/shadow",
    "/var/lib/machines/web/etc/shadow",
    "/proc/1/root/etc/gshadow",
    "/etc/security/opasswd",
    "/etc/sudoers",
    "/etc/sudoers.d/admins",
    "/etc/ssl/private/server.pem",
    "/etc/ssl/private/old/server.pem",
    "/etc/pki/tls/private/host.pem",
    "/etc/pki/private/host.pem",
    "/etc/letsencrypt/archive/example.org/privkey1.pem",
    "/etc/ssh/ssh_host_ed25519_key",
    "/home/a/.ssh/id_ed25519",
    "/root/.ssh/id_rsa",
    "/home/a/.ssh/id_ed25519.old",
    "/home/a/.gnupg/private-keys-v1.d/0A.key",
    "/srv/tls/server.key",
    "/server.key",
    "/srv/tls/server-key.pem",
    "/srv/tls/key.pem",
    "/srv/tls/store.p12",
    "/home/a/.aws/credentials",
    "/home/a/.netrc",
    "/home/a/.pgpass",
    "/home/a/.docker/config.json",
    "/home/a/.kube/config",
    "/home/a/.git-credentials",
    "/proc/1/environ",
    "/proc/self/environ",
    "/proc/1/task/2/environ",
    "/proc/1/mem",
    "/proc/1/task/2/mem",
    "/proc/1/fd/3",
    "/proc/kcore",
    "/etc/.shadow.swp",
    "/etc/nslcd.conf",
    "/etc/ldap/slapd.d/cn=config.ldif",
    "/etc/dbconfig-common/phpmyadmin.conf",
    "/var/lib/rabbitmq/.erlang.cookie",
    "/etc/rsyncd.secrets",
    "/etc/ipsec.d/site.secrets",
    "/root/.secrets/dns.ini",
    "/boot/grub2/user.cfg",
    "/etc/cups/printers.conf.O",
    "/home/a/.vnc/passwd",
    "/var/log/sudo-io/00/00/01/ttyin",
    "/etc/letsencrypt/accounts/a/b/private_key.json",
    "/etc/puppetlabs/puppet/ssl/private_keys/a.pem",
    "/home/a/.config/google-chrome/Default/Cookies",
    "/home/a/.mozilla/firefox/x.default/cookies.sqlite-wal",
    "/home/a/.config/sops/age/keys.txt",
    "/var/lib/tor/web/hs_ed25519_secret_key",
    "/etc/cryptsetup-keys.d/root.key",
    "/etc/luks-keys/data",
    "/etc/netplan/50-cloud-init.yaml",
    "/etc/sysconfig/network-scripts/keys-wlan",
    "/etc/hostapd/hostapd.conf",
    "/etc/freeradius/3.0/clients.conf",
    "/etc/zabbix/agent.psk",
    "/var/lib/tailscale/tailscaled.state",
    "/home/a/.cloudflared/cert.pem",
    "/etc/chrony/chrony.keys",
    "/etc/snmp/snmpd.conf",
    "/etc/iscsi/iscsid.conf",
    "/etc/postfix/sasl/passwd",
    "/home/a/.authinfo.gpg",
    "/etc/davfs2/secrets",
    "/home/a/.databrickscfg",
    "/home/a/.cache/huggingface/token",
    "/home/a/.vault-token",
    "/home/a/.config/helm/registry/config.json",
    "/home/a/.config/filezilla/sitemanager.xml",
    "/etc/gitlab/gitlab-secrets.json",
    "/var/lib/jenkins/secrets/master",
    "/home/a/.config/pypoetry/auth.toml",
    "/home/a/.gradle/gradle.properties",
    "/srv/service-account-1.json",
    "/home/a/.config/gcloud/application_default_credentials.json",
    "/home/a/.local/share/powershell/PSReadLine/ConsoleHost_history.txt",
    "/srv/root/run/secrets/db",
    "/var/lib/docker/containers/1/mounts/secrets/db",
    "/var/lib/containers/storage/overlay-containers/1/userdata/secrets/db",
    "/var/log/installer/autoinstall-user-data",
    "/root/anaconda-ks.cfg",
    "/var/lib/etcd/member/snap/db",
    "/etc/libvirt/secrets/1.base64",
    "/var/tmp/core.sshd.123",
    "/var/spool/abrt/ccpp-1/environ",
    "/var/lib/libvirt/qemu/save/web.save",
    "/srv/vm/web.vmem",
    "/proc/1/stat",
    "/proc/1/task/1/stat",
    "/proc/1/maps",
    "/proc/1/smaps_rollup",
    "/proc/1/io",
    "/proc/kallsyms",
    "/proc/modules",
    "/proc/iomem",
    "/sys/module/kvm/sections/.text",
    "/dev/sda",
    "/dev/disk/by-id/x",
]
ALLOWED = [
    "/etc/passwd",
    "/etc/ssh/sshd_config",
    "/etc/ssh/ssh_host_ed25519_key.pub",
    "/home/a/.ssh/id_ed25519.pub",
    "/home/a/.ssh/id_ed25519-cert.pub",
    "/home/a/.ssh/authorized_keys",
    "/home/a/.ssh/config",
    "/etc/ssl/certs/ca.pem",
    "/etc/pki/tls/certs/ca.pem",
    "/etc/letsencrypt/live/example.org/fullchain.pem",
    "/proc/1/status",
    "/proc/meminfo",
    "/etc/keys.conf",
    "/etc/monkey.pem",
    "/etc/group",
    "/etc/os-release",
    "/etc/crontab",
    "/etc/cron.d/backup",
    "/var/spool/cron/crontabs/root",
    "/var/log/auth.log",
    "/etc/hosts",
    "/etc/fstab",
    "/usr/lib/systemd/system/ssh.service",
    "/var/lib/dpkg/status",
    "/var/lib/rpm/rpmdb.sqlite",
    "/etc/pam.d/sshd",
    "/etc/ld.so.preload",
    "/etc/apt/sources.list",
    "/etc/postfix/main.cf",
    "/etc/dovecot/dovecot.conf",
    "/etc/samba/smb.conf",
    "/etc/mysql/my.cnf",
    "/etc/chrony/chrony.conf",
    "/etc/NetworkManager/NetworkManager.conf",
    "/etc/letsencrypt/live/a/cert.pem",
    "/usr/sbin/hostapd",
    "/usr/bin/cloudflared",
    "/root/.bashrc",
    "/srv/project/gradle.properties",
    "/proc/stat",
    "/proc/mounts",
    "/sys/module/kvm/version",
    "/devel/notes",
]


@pytest.mark.parametrize("path", DENIED)
def test_secrets_are_not_read_by_default(path: str) -> None:
    assert not AccessPolicy().may_read(path)


@pytest.mark.parametrize("path", ALLOWED)
def test_ordinary_files_are_read_by_default(path: str) -> None:
    assert AccessPolicy().may_read(path)


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("/a/*", ["/a/b", "/a/.b"], ["/a/b/c", "/a", "/b/a/c"]),
        ("/a/**", ["/a/b", "/a/b/c"], ["/a", "/ab"]),
        ("/**/x", ["/x", "/a/x", "/a/b/x"], ["/ax", "/a/bx", "/a/x/y"]),
        ("/a/**/x", ["/a/x", "/a/b/c/x"], ["/ax", "/b/x"]),
        ("/a?c", ["/abc"], ["/a/c", "/ac"]),
        ("/[ab]x", ["/ax", "/bx"], ["/cx", "/x"]),
        ("/[!ab]x", ["/cx"], ["/ax", "/a/x"]),
        ("/a.b", ["/a.b"], ["/acb"]),
        ("/a[", ["/a["], ["/a"]),
        ("/line\n*", ["/line\nfeed"], ["/line"]),
    ],
)
def test_a_pattern_of_files_means_what_its_wildcards_say(pattern: str, matching: list[str], others: list[str]) -> None:
    policy = AccessPolicy(AccessSettings(paths_deny=(pattern,)))
    assert [path for path in matching if policy.may_read(path)] == []
    assert [path for path in others if not policy.may_read(path)] == []


def test_a_later_exception_takes_back_what_a_pattern_denied() -> None:
    policy = AccessPolicy(AccessSettings(paths_deny=("/srv/**", "!/srv/public/**", "/srv/public/secret")))
    assert not policy.may_read("/srv/a")
    assert policy.may_read("/srv/public/a")
    assert not policy.may_read("/srv/public/secret")


def test_only_allowed_paths_are_read_and_denied_ones_among_them_are_not() -> None:
    policy = AccessPolicy(AccessSettings(paths_allow=("/etc/**",), paths_deny=("/etc/shadow",)))
    assert policy.may_read("/etc/passwd")
    assert not policy.may_read("/etc/shadow")
    assert not policy.may_read("/home/a/notes")


def test_tables_are_allowed_and_denied_by_globs() -> None:
    policy = AccessPolicy(AccessSettings(tables_allow=("files_*", "users"), tables_deny=("files_lines",)))
    assert policy.may_query("users")
    assert policy.may_query("files_list")
    assert not policy.may_query("files_lines")
    assert not policy.may_query("processes")


def test_a_rule_for_any_name_of_a_table_holds() -> None:
    policy = AccessPolicy(AccessSettings(tables_deny=("process_events",)))
    assert not policy.may_query("processes_events", "process_events")


def test_secrets_are_denied_whatever_other_rules_there_are() -> None:
    policy = AccessPolicy(AccessSettings(tables_deny=("users",), tables_allow=("process_*",), columns_deny=("a.b",)))
    assert not policy.may_query("process_envs", "osquery_process_envs")
    assert policy.denied_by("process_envs") == "access.secrets_deny"
    assert policy.denied_by("users") == "access.tables_deny, access.tables_allow"
    assert policy.denied_by("process_open_files") is None
    assert policy.withheld(("start", "path"), "process_memory_map") == {"start"}
    assert policy.withheld(("b",), "a") == {"b"}
    permitted = AccessPolicy(AccessSettings(secrets_deny=("shell_history",)))
    assert permitted.may_query("process_envs")
    assert not permitted.may_query("shell_history")
    assert permitted.withheld(("start", "path"), "process_memory_map") == frozenset()


def test_files_that_a_table_shows_are_on_the_second_list_for_it_alone() -> None:
    shown = ShownFiles(("/**/.ssh/known_hosts",))
    policy = AccessPolicy()
    assert policy.contents("/home/a/.ssh/known_hosts") is Contents.UNLISTED
    assert policy.contents("/home/a/.ssh/known_hosts", shown) is Contents.PRIVATE
    assert policy.contents("/home/a/.ssh/../.ssh/known_hosts", shown) is Contents.PRIVATE
    assert policy.contents("/home/a/.ssh/config", shown) is Contents.UNLISTED
    allowed = AccessPolicy(AccessSettings(files_allow=("/home/**",)))
    assert allowed.contents("/home/a/.ssh/known_hosts", shown) is Contents.CONFIGURED


def test_rules_that_were_added_are_known_from_the_default_ones() -> None:
    default = AccessPolicy()
    added = AccessPolicy(AccessSettings(paths_deny=(*PATHS_DENY, "/home/b/**")), protected=["/var/lib/agent"])
    for path in ("/home/a/.bash_history", "/home/a/.ssh/id_rsa"):
        assert default.denies(path)
        assert not default.denies_by_added_rule(path)
        assert not added.denies_by_added_rule(path)
    assert added.denies_by_added_rule("/home/a/../b/.bash_history")
    assert added.denies_by_added_rule("/var/lib/agent/events.db")


def test_secrets_in_command_lines_are_hidden() -> None:
    masker = AccessPolicy().masker
    assert masker.line("mysql --user=a --password=hunter2 db") == "mysql --user=a --password=*** db"
    assert masker.command_line(b"curl\0-u\0a:b\0").argv == ["curl", "-u", "a:***"]
    assert masker.line("ls -l") == "ls -l"
    assert AccessPolicy(AccessSettings(mask=False)).masker.line("password=x") == "password=x"


def test_every_pattern_of_redaction_is_applied_to_the_joined_arguments() -> None:
    masker = AccessPolicy(AccessSettings(redact=("a+", "(?i)B", r"--with \S+"))).masker
    assert masker.line("aa-b-c") == "***-***-c"
    assert masker.command_line(b"run\0--with\0x\0--token=a").argv == ["run", "***", "***", "--token=***"]
    assert masker.command_line(b"\0\0a\0").argv == ["", "", "***"]


def test_an_invalid_redaction_pattern_is_named() -> None:
    with pytest.raises(UsageError, match=r"access\.redact: '\(' is not a regular expression"):
        AccessPolicy(AccessSettings(redact=("(",)))
