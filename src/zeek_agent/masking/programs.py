"""Options and arguments that hold secrets, by program, as the programs' manuals describe them.

`secrets` lists the options whose value is a secret, in the manual's spelling. A suffix says how the value is written:

| Suffix | Value |
|---|---|
| none | `--option VALUE`, `--option=VALUE`, and `-oVALUE` for an option of one letter |
| `!` | only attached: `-oVALUE`, `--option=VALUE`; the next argument is something else |
| `:` | `user:SECRET`; without a colon it is only a user |
| `%` | `user%SECRET` |
| `,` | `user,SECRET` |
| `@` | `pass:SECRET` and the like; `env:NAME`, `file:PATH`, `fd:NUMBER` and `stdin` are references |
| `=` | `name=SECRET` |
| `/` | `user/SECRET@database` |
| `&` | `user:SECRET@host` |
| `;` | options separated by commas, some of which are secret: `username=x,password=SECRET` |
| `~` | `pass:SECRET`, `key:SECRET` and the like; anything else is not secret |
| `>` | `>SECRET`, `<SECRET`, `#SECRET` |
| `\\` | SECRET, unless it is a share: `\\\\computer\\share` |
| `*` | two secrets: `--option SECRET SECRET` |
| `$` | a shell's command, which can hold secrets |
| `^` | no secret, even if it looks like one: `--from-file=password=PATH` |

`valued` are the letters of options that take a value which is not secret, so that a cluster such as `-sSu user:pw` is
read as the program reads it. `plain` are options that are named like a secret and are none. `positional` are the places
of secrets among the arguments that are not options, from 1; 0 is all of them. `follows` are words after which the next
argument is a secret, written as in `follows_form`. `settings`: an argument that is named like a secret is
followed by it, as in `config set NAME VALUE`. `after` limits an entry to what stands behind one of these words, such as
a subcommand; a word that ends in `*` stands for all that begin like it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from zeek_agent.masking.names import words


@dataclass(frozen=True, slots=True)
class Program:
    """The secrets in the arguments of some programs; the module's text explains the fields."""

    names: str
    source: str
    secrets: str = ""
    valued: str = ""
    plain: str = ""
    positional: Sequence[int] = ()
    positional_form: str = ""
    follows: str = ""
    follows_form: str = ""
    settings: bool = False
    after: str = ""
    given: str = ""
    """The entry applies only if some argument contains this."""
    unless: str = ""
    """Words; the entry does not apply if one of them is an argument."""
    has_slash_options: bool = False
    """Options begin with a slash, and have their values attached: `/user:alice`."""
    last_with: str = ""
    """A letter: with this option, the last argument is a secret."""


PROGRAMS: Final = (
    # Databases
    Program(
        "mysql mysqladmin mysqlbinlog mysqlcheck mysqldump mysqlimport mysqlpump mysqlshow mysqlslap mysql_upgrade "
        "mariadb mariadb-admin mariadb-binlog mariadb-check mariadb-dump mariadb-import mariadb-show mariadb-slap "
        "mariadb-upgrade mariadb-backup mariabackup xtrabackup",
        "mysql(1), mariadb(1): -p[password], --password[=name]",
        "-p! --password! --password1! --password2! --password3!",
        valued="hPuDeSO",
    ),
    Program(
        "mysqlsh",
        "mysqlsh(1): -p, --password[=<pass>]; URI as first argument",
        "-p! --password! --dbpassword!",
        positional=(1,),
        positional_form="&",
    ),
    Program(
        "mysqladmin mariadb-admin",
        "mysqladmin(1): password new_password, old-password new_password",
        follows="password old-password",
    ),
    Program(
        "mysqld mariadbd mysqld_safe", "Galera: wsrep_sst_auth=user:password", "--wsrep_sst_auth: --wsrep-sst-auth:"
    ),
    Program(
        "pt-archiver pt-heartbeat pt-online-schema-change pt-slave-delay pt-table-checksum pt-table-sync",
        "Percona Toolkit, DSN: p=password",
        positional=(0,),
        positional_form="p=",
    ),
    Program("mycli", "mycli --help: -p, --password, --pass TEXT", "-p --password --pass", valued="hPuDSRlt"),
    Program("mydumper myloader", "mydumper(1): -p, --password", "-p --password"),
    Program(
        "mongo mongosh mongodump mongorestore mongoexport mongoimport mongostat mongotop mongofiles bsondump",
        "MongoDB Shell and Database Tools reference: --password, -p",
        "-p --password --sslPEMKeyPassword --tlsCertificateKeyFilePassword --awsSecretAccessKey --awsIamSessionToken",
    ),
    Program(
        "redis-cli valkey-cli keydb-cli",
        "redis-cli --help: -a <password>, --pass <password>",
        "-a --pass",
        valued="hpsundrDiCPtX",
        follows="requirepass masterauth",
    ),
    Program(
        "redis-cli valkey-cli keydb-cli",
        "Redis commands: AUTH [username] password",
        after="AUTH auth",
        positional=(0,),
    ),
    Program(
        "redis-cli valkey-cli keydb-cli",
        "Redis commands: ACL SETUSER username [rule ...]; >password, <password, #hash, !hash",
        after="SETUSER setuser",
        positional=(0,),
        positional_form=">",
    ),
    Program(
        "redis-sentinel redis-server valkey-sentinel valkey-server",
        "sentinel.conf: sentinel auth-pass <master-name> <password>",
        after="auth-pass",
        positional=(2,),
    ),
    Program("redis-benchmark valkey-benchmark", "redis-benchmark --help: -a <password>", "-a", valued="hpscndrPtIl"),
    Program("redis-server valkey-server", "redis.conf: requirepass, masterauth", "--requirepass --masterauth"),
    Program("sqlcmd bcp osql", "sqlcmd and bcp utility references: -P password", "-P", valued="SUdQqiohwstabefr"),
    Program("tsql fisql bsqldb", "tsql(1): -P password", "-P", valued="SUHpIJo"),
    Program("isql iusql", "isql(1): isql DSN [UID [PWD]]", positional=(3,)),
    Program(
        "sqlplus exp imp expdp impdp sqlldr",
        "SQL*Plus User's Guide: username/password[@connect_identifier]; Oracle Utilities: userid=username/password",
        positional=(1, 2),
        positional_form="/",
    ),
    Program(
        "rman",
        "RMAN reference: rman target username/password@connect_identifier catalog …",
        follows="target catalog auxiliary TARGET CATALOG AUXILIARY",
        follows_form="/",
        positional=(0,),
        positional_form="/=",
    ),
    Program("db2 connect CONNECT", "Db2 CONNECT statement: USER name USING password", follows="using USING"),
    Program("vsql", "vsql reference: -w, --password", "-w --password", valued="hUpdcfFoPRTv"),
    Program(
        "couchbase-cli cbq cbbackupmgr cbimport cbexport",
        "couchbase-cli reference: -p, --password",
        "-p --password",
        valued="cu",
    ),
    Program("cypher-shell", "cypher-shell --help: -p, --password", "-p --password", valued="aud"),
    Program(
        "neo4j-admin",
        "neo4j-admin dbms set-initial-password <password>",
        after="set-initial-password",
        positional=(1,),
    ),
    Program("beeline", "Beeline command options: -p <password>", "-p", valued="undefw"),
    Program("cqlsh", "cqlsh reference: -p, --password", "-p --password", valued="ukfe"),
    Program("clickhouse-client clickhouse", "clickhouse-client reference: --password", "--password"),
    Program("influx", "influx reference: -password (1.x), --token, -t (2.x)", "-password --password -t --token"),
    Program("etcdctl", "etcdctl reference: --user username[:password], --password", "--user: --password"),
    Program(
        "etcdctl",
        "etcdctl reference: user add <user name or user:password>",
        after="add",
        positional=(1,),
        positional_form=":",
    ),
    Program("rabbitmqadmin", "rabbitmqadmin --help: -p, --password", "-p --password", valued="HPuVNc"),
    Program(
        "rabbitmqctl",
        "rabbitmqctl(8): add_user, change_password, authenticate_user",
        after="add_user change_password authenticate_user",
        positional=(2,),
    ),
    Program(
        "mosquitto_pub mosquitto_sub mosquitto_rr",
        "mosquitto_pub(1): -P, --pw; --psk",
        "-P --pw --psk",
        valued="AfhikLmopqtuVx",
    ),
    Program("mosquitto_passwd", "mosquitto_passwd(1): -b passwordfile username password", last_with="b"),
    # HTTP and file transfer
    Program(
        "curl",
        "curl(1): -u, --user; -U, --proxy-user; --pass; --oauth2-bearer; --tlspassword; -b, --cookie",
        "-u: --user: -U: --proxy-user: --pass --proxy-pass --oauth2-bearer --tlspassword --proxy-tlspassword "
        "-b= --cookie= -E: --cert: --proxy-cert: -x& --proxy& --preproxy& --socks4& --socks4a& --socks5& "
        "--socks5-hostname&",
        valued="AcCdDeFHhKmoPQrtTwXyYz",
        plain="--key --proxy-key --key-type --pubkey --cookie-jar",
        positional=(0,),
        positional_form="&",
    ),
    Program(
        "wget wget2",
        "wget(1): --password, --http-password, --ftp-password, --proxy-password",
        "--password --http-password --ftp-password --proxy-password",
    ),
    Program("http https xh xhs", "HTTPie documentation: --auth, -a USER[:PASS] | TOKEN", "-a: --auth:"),
    Program(
        "http https xh xhs",
        "HTTPie documentation: --auth-type, -A bearer; --auth, -a TOKEN",
        "-a --auth",
        given="bearer",
    ),
    Program(
        "ab",
        "ab(1): -A auth-username:password, -P proxy-auth-username:password",
        "-A: -P:",
        valued="bBcCeEfgHilmnpstTuvxXyzZ",
    ),
    Program(
        "aria2c",
        "aria2c(1): --http-passwd, --ftp-passwd, --rpc-secret",
        "--http-passwd --ftp-passwd --rpc-secret --rpc-passwd --all-proxy-passwd",
    ),
    Program("lftp", "lftp(1): -u user[,pass]", "-u, --user, --password", valued="pefc"),
    Program("open", "lftp(1): open -u user[,pass], a command of lftp -c and -e", "-u, --user, --password", valued="pe"),
    Program("user", "lftp(1): user <user> [<pass>], a command of lftp -c and -e", positional=(2,)),
    Program("ncftp ncftpget ncftpput ncftpls", "ncftpput(1): -p XX", "-p", valued="uPdfot"),
    Program("rclone", "rclone obscure, rclone flags: --sftp-pass and others", after="obscure", positional=(0,)),
    Program("rclone", "rclone config create name type [key value]", after="create update", settings=True),
    Program("mc mcli", "MinIO client: mc alias set ALIAS URL ACCESSKEY SECRETKEY", after="set", positional=(4,)),
    Program("mc mcli", "MinIO client: mc admin user add ALIAS ACCESSKEY SECRETKEY", after="add", positional=(3,)),
    Program("rsync", "rsync(1): -e, --rsh=COMMAND", "-e$ --rsh$"),
    Program("setenv", "csh(1): setenv name value", settings=True),
    Program("set", "fish: set -gx NAME VALUE", settings=True),
    Program("sshpass", "sshpass(1): -p password", "-p", valued="fdPe"),
    Program("plink pscp psftp", "PuTTY manual 3.8.3.8: -pw", "-pw", plain="-pwfile"),
    Program(
        "puttygen",
        "puttygen(1): --old-passphrase and --new-passphrase name a file",
        plain="--old-passphrase --new-passphrase",
    ),
    Program(
        "ssh-keygen", "ssh-keygen(1): -N new_passphrase, -P passphrase", "-N -P", valued="abCDEfFGIJKmMnOrRsStTVwWYzZ"
    ),
    Program("swaks", "swaks(1): -ap, --auth-password", "-ap --auth-password"),
    Program("sendemail sendEmail", "sendEmail --help: -xp PASSWORD", "-xp"),
    Program("imapsync", "imapsync README: --password1, --password2", "--password1 --password2"),
    Program("imtest pop3test smtptest sivtest", "imtest(1): -w password", "-w", valued="tkluvampfrXo"),
    # Directory services and accounts
    Program(
        "ldapsearch ldapadd ldapmodify ldapdelete ldapmodrdn ldapcompare ldapwhoami ldapexop ldapvc",
        "ldapsearch(1): -w passwd",
        "-w",
        valued="abDefHhlopPRsSTUXyYzOIE",
        plain="-y",
    ),
    Program("ldappasswd", "ldappasswd(1): -w passwd, -a oldPasswd, -s newPasswd", "-w -a -s", valued="DdHhoOpRtTUXyYe"),
    Program("slappasswd", "slappasswd(8): -s secret", "-s", valued="hcTo"),
    Program(
        "smbclient rpcclient smbget smbtree smbcacls smbcquotas net winexe wmic pth-winexe nmblookup smbspool regpatch",
        "smbclient(1): -U, --user=username[%password]; --password",
        "-U% --user% --password",
    ),
    Program("smbclient", "smbclient(1): servicename [password]", positional=(2,), valued="AWnOLIpmTDsMcbdtliR"),
    Program("smbmap", "smbmap --help: -p PASSWORD", "-p", valued="Hudsrx"),
    Program("enum4linux enum4linux-ng", "enum4linux --help: -p pass; enum4linux-ng: -p PW", "-p", valued="uwskKRtH"),
    Program(
        "setuserinfo setuserinfo2",
        "rpcclient(1): setuserinfo username level password, a command of -c",
        positional=(3,),
    ),
    Program("smbpasswd", "smbpasswd(8): -w password; -U username[%pass]", "-w -U%", valued="DrRca"),
    Program(
        "wbinfo",
        "wbinfo(1): -a, --authenticate username%password; -K",
        "-a% --authenticate% -K% --krb5auth% --pam-logon% --set-auth-user%",
    ),
    Program(
        "ntlm_auth", "ntlm_auth(1): --password=PLAINTEXT-PASSWORD", "--password --challenge --lm-response --nt-response"
    ),
    Program(
        "samba-tool",
        "samba-tool(8): -U, --username=USERNAME[%PASSWORD]; --password; --newpassword",
        "-U% --username% --user% --password --newpassword --adminpass",
    ),
    Program("samba-tool", "samba-tool(8): user create username [password]", after="create add", positional=(2,)),
    Program(
        "mount mount.cifs mount.smb3 mount.davfs mount.ntfs curlftpfs",
        "mount.cifs(8): -o user=arg[%pass],password=arg; curlftpfs(1): -o user=STR:STR",
        "-o;",
        valued="tLUN",
    ),
    Program(
        "useradd usermod groupadd groupmod",
        "useradd(8), usermod(8), groupadd(8): -p, --password",
        "-p --password",
        valued="bcdDefgGkKRsuZ",
    ),
    Program("htpasswd", "htpasswd(1): -b passwordfile username password", last_with="b", valued="Cr"),
    Program("mkpasswd", "mkpasswd(1): mkpasswd PASSWORD SALT", positional=(0,), valued="mSRP"),
    Program("kadmin kadmin.local", "kadmin(1): -w password; addprinc -pw password", "-w -pw", valued="rpqckse"),
    Program(
        "addprinc add_principal ank cpw change_password", "kadmin(1): addprinc -pw password, a command of -q", "-pw"
    ),
    Program("ipa-client-install", "ipa-client-install(1): -w, --password", "-w --password", valued="p"),
    Program(
        "ipa-server-install ipa-replica-install",
        "ipa-server-install(1): -p, --ds-password; -a, --admin-password; -P, --master-password",
        "-p --ds-password -a --admin-password -P --master-password -w",
    ),
    Program("testsaslauthd", "testsaslauthd(8): -p password", "-p", valued="ursf"),
    Program("doveadm", "doveadm-pw(1): -p password", "-p", after="pw", valued="sru"),
    Program("doveadm", "doveadm-auth(1): auth test user [password]", after="test login", positional=(2,)),
    Program("net", "net(8): net user, net rpc user add name [password]", after="add", positional=(2,)),
    Program("net", "net(8): net rpc password username [password]", after="password", positional=(2,)),
    Program(
        "passwd chpasswd newusers", "passwd(1), chpasswd(8): passwords are read from standard input", plain="--password"
    ),
    # Cryptography and archives
    Program(
        "openssl",
        "openssl-passphrase-options(1), openssl-enc(1), openssl-dgst(1): -pass, -passin, -passout, -k, -K, -hmac, -psk",
        "-pass@ -passin@ -passout@ -password@ -passcerts@ -k -K -hmac -psk -mac_key -macopt~ -proxy_pass@ -srp_pass@ "
        "-kdfopt~ -pkeyopt~ -pwri_password -secretkey",
    ),
    Program("openssl", "openssl-ca(1): -key password", "-key", after="ca"),
    Program("openssl", "openssl-passwd(1): password ...", after="passwd", positional=(0,), plain="-salt"),
    Program(
        "gpg gpg2 gpgsm gpg-preset-passphrase",
        "gpg(1): --passphrase string",
        "--passphrase -P",
        plain="--passphrase-file --passphrase-fd",
    ),
    Program("zip zipcloak", "zip(1): -P, --password", "-P --password", valued="bitxnO"),
    Program("unzip", "unzip(1): -P password", "-P", valued="dx"),
    Program("7z 7za 7zr 7zz p7zip", "7z -p (set Password) switch", "-p!"),
    Program("unar lsar", "unar(1): -password, -p password", "-p -password"),
    Program("qpdf", "qpdf(1): --password=password; --encrypt user-password owner-password", "--password --encrypt*"),
    Program(
        "pdftk",
        "pdftk(1): input_pw, owner_pw, user_pw",
        follows="input_pw owner_pw user_pw",
    ),
    Program(
        "pdftotext pdfinfo pdftoppm pdftocairo pdftohtml pdfimages pdffonts",
        "pdftotext(1): -opw password, -upw password",
        "-opw -upw",
    ),
    Program("veracrypt truecrypt", "VeraCrypt command line: -p, --password", "-p --password --new-password"),
    Program("rar unrar", "rar manual: -p[password], -hp[password]", "-p! -hp!"),
    Program(
        "keytool",
        "keytool(1): -storepass, -keypass, -srcstorepass, -deststorepass, -srckeypass, -destkeypass, -new",
        "-storepass -keypass -srcstorepass -deststorepass -srckeypass -destkeypass -new",
        plain="-storepass:env -storepass:file -keypass:env -keypass:file",
    ),
    Program("jarsigner", "jarsigner(1): -storepass, -keypass", "-storepass -keypass"),
    Program("apksigner", "apksigner reference: --ks-pass, --key-pass", "--ks-pass@ --key-pass@"),
    Program("signtool osslsigncode", "osslsigncode(1): -pass <password>", "-pass /p"),
    Program(
        "hdparm",
        "hdparm(8): --security-set-pass, --security-unlock, --security-erase, --security-disable",
        "--security-set-pass --security-unlock --security-erase --security-erase-enhanced --security-disable",
    ),
    Program(
        "pkcs11-tool", "pkcs11-tool(1): -p, --pin; --so-pin; --new-pin; --puk", "-p --pin --so-pin --new-pin --puk"
    ),
    Program(
        "pkcs15-tool pkcs15-init pkcs15-crypt",
        "pkcs15-init(1): --pin, --so-pin, --puk",
        "--pin --so-pin --puk --so-puk",
    ),
    Program(
        "yubico-piv-tool ykman", "yubico-piv-tool(1): -P, --pin; -N, --new-pin; -k, --key", "-P --pin -N --new-pin"
    ),
    # Containers, clouds and orchestration
    Program(
        "docker podman nerdctl buildah skopeo",
        "docker-build(1): --secret names a source; skopeo-copy(1): --creds username[:password]",
        "--creds: --src-creds: --dest-creds: --registry-token --src-registry-token --dest-registry-token",
        plain="--secret --authfile --decryption-key",
    ),
    Program("ctr", "ctr images pull --help: --user, -u user[:password]", "-u: --user:", after="pull push"),
    Program("crictl", "crictl pull --help: --creds USERNAME[:PASSWORD]; --auth", "--creds: --auth"),
    Program(
        "docker podman nerdctl buildah skopeo helm oras crane",
        "docker-login(1): -p, --password",
        "-p --password",
        valued="u",
        after="login",
    ),
    Program(
        "kubectl oc k3s microk8s",
        "kubectl create secret: --from-literal=key=value; --docker-password; --token",
        "--from-literal= --docker-password --token --password --from-file^ --from-env-file^",
        plain="--client-key",
    ),
    Program("kubectl oc", "kubectl patch secret: -p, --patch", "-p --patch", after="secret secrets secret/*"),
    Program(
        "kubectl oc",
        "kubectl config set PROPERTY_NAME PROPERTY_VALUE: users.NAME.token",
        after="config",
        settings=True,
    ),
    Program(
        "k3s rke2", "k3s server --help: --token, -t; --agent-token", "-t --token --agent-token", after="server agent"
    ),
    Program("oc", "oc login --help: -p, --password; --token", "-p --password --token", after="login", valued="un"),
    Program("kubectl oc", "kubectl create token: a subcommand, not a value", plain="--service-account-token"),
    Program("argocd", "argocd login: --password", "--password --auth-token"),
    Program("vault bao", "vault login [token]", after="login", positional=(1,)),
    Program("vault bao", "vault operator unseal [key]", after="unseal", positional=(1,)),
    Program(
        "vault bao",
        "vault token lookup, renew and revoke [TOKEN]",
        after="lookup renew revoke",
        positional=(1,),
        given="token",
    ),
    Program("vault bao", "vault unwrap [TOKEN]", after="unwrap", positional=(1,)),
    Program(
        "vault bao",
        "vault write PATH [K=V]: of the key-value engine, and an AppRole's secret_id",
        after="secret/* kv/* cubbyhole/* auth/approle/*",
        positional=(0,),
        positional_form="=",
    ),
    Program("consul", "consul agent: -encrypt", "-encrypt"),
    Program(
        "vault bao", "vault kv put, vault kv patch: [K=V]", after="put patch", positional=(0,), positional_form="="
    ),
    Program(
        "aws",
        "AWS CLI reference: secretsmanager --secret-string, sts --token-code",
        "--secret-string --secret-binary --master-user-password --token-code "
        "--sse-c-key --sse-c-copy-source-key --sse-customer-key --copy-source-sse-customer-key",
        plain="--secret-id --secret-arn --next-token --starting-token --page-token",
    ),
    Program("aws", "AWS CLI reference: configure set NAME VALUE", after="configure", settings=True),
    Program("aws", "AWS CLI reference: ssm put-parameter --type SecureString --value", "--value", given="SecureString"),
    Program(
        "az",
        "az login --help: -p, --password; az keyvault secret set --value",
        "-p --password --account-key --sas-token",
        after="login",
    ),
    Program("az", "az keyvault secret set: --value", "--value", after="secret"),
    Program(
        "az",
        "az sql server create, az postgres flexible-server create: -p, --admin-password",
        "-p --admin-password",
        after="server flexible-server credential",
    ),
    Program("ibmcloud", "ibmcloud login --help: -p; --apikey", "-p --apikey", after="login", valued="uacgr"),
    Program("cf", "cf login --help: -p", "-p", after="login", valued="auos"),
    Program("cf", "cf auth USERNAME PASSWORD", after="auth", positional=(2,)),
    Program("cf", "cf set-env APP_NAME ENV_VAR_NAME ENV_VAR_VALUE", after="set-env se", settings=True),
    Program("heroku", "heroku config:set KEY=value", after="config:set", positional=(0,), positional_form="="),
    Program("vercel", "vercel --help: -t, --token", "-t --token"),
    Program("netlify", "netlify --auth <token>", "--auth"),
    Program("pulumi", "pulumi config set <key> [value], --secret", after="set", settings=True),
    Program("pulumi", "pulumi config set <key> <value> --secret: a flag", "--secret!"),
    Program(
        "gcloud",
        "gcloud secrets versions access: --secret names a secret",
        plain="--secret --page-token --impersonate-service-account",
    ),
    Program("doctl", "doctl auth init: -t, --access-token", "-t --access-token"),
    Program("gh", "gh secret set: -b, --body", "-b --body", after="secret"),
    Program("glab", "glab auth login: -t, --token", "-t --token", after="login"),
    Program(
        "gitlab-runner",
        "gitlab-runner register: -t, --token; -r, --registration-token",
        "-t --token -r --registration-token",
    ),
    Program("flyctl fly", "fly secrets set NAME=VALUE", after="set import", positional=(0,), positional_form="="),
    Program(
        "kubeadm",
        "kubeadm join: --token; --certificate-key",
        "--token --certificate-key --tls-bootstrap-token --discovery-token",
    ),
    Program("tailscale", "tailscale up: --auth-key", "--auth-key --authkey"),
    Program("ngrok", "ngrok config add-authtoken TOKEN", after="authtoken add-authtoken", positional=(1,)),
    Program("cloudflared", "cloudflared tunnel run --token", "--token", after="run"),
    Program("cloudflared", "cloudflared service install TOKEN", after="install", positional=(1,)),
    Program(
        "ansible ansible-playbook ansible-pull ansible-console",
        "ansible-playbook(1): files hold the passwords and keys",
        plain="--ask-pass --vault-id --private-key --key-file",
    ),
    Program(
        "ansible-vault",
        "ansible-vault(1): encrypt_string [string_to_encrypt]; --vault-id names a file",
        plain="--vault-id --encrypt-vault-id --name -n --output --stdin-name",
        after="encrypt_string",
        positional=(0,),
    ),
    # Development
    Program("svn svnadmin svnsync", "svn help: --password ARG", "--password --source-password --sync-password"),
    Program("p4", "p4 reference: -P password", "-P", valued="cCdHpuxrzL"),
    Program("git", "git-config(1): git config name value", after="config", settings=True),
    Program("git hg", "git-commit(1): -m, --message is text", valued="mCcFSu", plain="--message"),
    Program("npm pnpm yarn", "npm-config(1): set key value; --otp", "--otp", follows="_authToken _auth _password"),
    Program("npm pnpm yarn", "yarn config set <name> <value>", after="config", settings=True),
    Program("dotnet", "dotnet user-secrets set NAME VALUE", after="set", positional=(2,), given="user-secrets"),
    Program(
        "mvn",
        "Maven CLI: -emp, --encrypt-master-password; -ep, --encrypt-password",
        "-emp -ep --encrypt-password --encrypt-master-password",
    ),
    Program("sonar-scanner", "SonarScanner parameters: sonar.login is a token or user name", "-Dsonar.login"),
    Program(
        "bundle",
        "bundle-config(1): credentials of gem sources, user:password",
        after="config",
        positional=(2, 3, 4),
        positional_form=":",
    ),
    Program(
        "composer",
        "composer config: github-oauth.HOST TOKEN, gitlab-token.HOST TOKEN, bearer.HOST TOKEN",
        after="github-oauth.* gitlab-token.* gitlab-oauth.* bearer.*",
        positional=(1,),
    ),
    Program("drone", "drone --help: -t, --token", "-t --token"),
    Program("caddy", "caddy hash-password --plaintext", "--plaintext -p", after="hash-password"),
    Program("twine", "twine upload: -p, --password", "-p --password", after="upload", valued="rui"),
    Program("poetry", "poetry publish: -p, --password", "-p --password", after="publish", valued="ru"),
    Program(
        "poetry composer",
        "poetry config, composer config: http-basic.NAME USER PASSWORD",
        after="http-basic.*",
        positional=(2,),
    ),
    Program("poetry", "poetry config pypi-token.NAME TOKEN", after="pypi-token.*", positional=(1,)),
    Program("cargo", "cargo(1): options with a value", plain="--registry --index --config --color"),
    Program("cargo", "cargo-login(1): cargo login [token]", after="login", positional=(1,)),
    Program(
        "dotnet nuget nuget.exe",
        "nuget push: -k, --api-key; nuget add source: -p, --password",
        "-k --api-key -ApiKey -p --password -Password",
        after="push add source sources delete update",
    ),
    Program("jenkins-cli jenkins-cli.jar", "Jenkins CLI: -auth user:token", "-auth:"),
    Program("codecov", "codecov uploader: -t, --token", "-t --token"),
    Program("snyk", "snyk auth [API_TOKEN]", after="auth", positional=(1,)),
    Program("lpass", "lpass(1): --password selects what is shown", plain="--password --username --notes"),
    Program("kdialog", "kdialog --help: --password <text>", plain="--password --newpassword"),
    Program("send exp_send", "expect(1): send string, in a script of expect -c", positional=(0,), given="\\r"),
    Program("jq", "jq(1): --arg name value", plain="--argfile --slurpfile"),
    Program("ffmpeg ffprobe x264 x265", "ffmpeg(1): -pass n selects the pass", plain="-pass --pass"),
    Program("logger wall notify-send", "logger(1): arguments are the message", plain="-t --tag"),
    # Remote administration and monitoring
    Program("ipmitool", "ipmitool(1): user set password <user id> [<password>]", after="password", positional=(2,)),
    Program("onesixtyone", "onesixtyone(1): onesixtyone host community", positional=(2,)),
    Program("ipmitool", "ipmitool(1): -P <password>, -k <key>, -y <hex key>", "-P -k -y", valued="dIoOUHpLtbmNRAeC"),
    Program(
        "ipmi-sensors ipmipower ipmi-chassis ipmi-sel ipmi-fru ipmiconsole bmc-info",
        "ipmi-sensors(8): -p, --password; -k, --k-g",
        "-p --password -k --k-g",
        valued="hulI",
    ),
    Program("redfishtool", "redfishtool README: -p password", "-p --password", valued="ru"),
    Program("racadm idracadm7", "RACADM CLI Guide: -r host -u user -p password", "-p", valued="ru"),
    Program(
        "snmpget snmpgetnext snmpwalk snmpbulkget snmpbulkwalk snmpset snmptable snmptrap snmpinform "
        "snmpstatus snmpdf snmptest snmpdelta",
        "snmpcmd(1): -c community, -A authPassword, -X privPassword, -3[MmKk]",
        "-c -A -X -3m -3M -3k -3K",
        valued="aCdDeElLmMnOPrRtuvxZ",
    ),
    Program(
        "check_mysql check_mysql_query check_pgsql",
        "Monitoring Plugins: check_mysql -p, --password",
        "-p --password",
        valued="HPudfgks",
    ),
    Program("check_ldap", "Monitoring Plugins: check_ldap -P, --pass", "-P --pass", valued="Hptbacfw"),
    Program(
        "check_http",
        "Monitoring Plugins: check_http -a, --authorization=AUTH_PAIR; -b",
        "-a: --authorization: -b: --proxy-authorization:",
        valued="HIupceslrtwLfm",
    ),
    Program(
        "check_snmp",
        "Monitoring Plugins: check_snmp -C, --community; -A; -X",
        "-C --community -A --authpasswd -X --privpasswd",
        valued="Hopwcsrlum",
    ),
    Program(
        "nmcli",
        "nmcli(1): device wifi connect SSID password PASSWORD; properties such as wifi-sec.psk",
        follows=(
            "password wifi-sec.psk 802-11-wireless-security.psk wifi-sec.wep-key0 802-1x.password vpn.secrets "
            "802-1x.private-key-password gsm.password pppoe.password"
        ),
    ),
    Program("hostapd_cli", "hostapd_cli(1): set <name> <value>", after="set", settings=True),
    Program(
        "ss-local ss-redir ss-server ss-tunnel sslocal ssserver",
        "ss-local(1): -k <password>",
        "-k --password",
        valued="spbltmnciaf",
    ),
    Program("iwctl", "iwctl(1): --passphrase", "-P --passphrase"),
    Program("wpa_passphrase", "wpa_passphrase(8): wpa_passphrase ssid [passphrase]", positional=(2,)),
    Program("iwconfig", "iwconfig(8): key, enc", follows="key enc"),
    Program(
        "wpa_cli",
        "wpa_cli(8): set_network <id> psk VALUE, password <id> VALUE",
        follows="psk sae_password wep_key0 password",
        valued="ipga",
    ),
    Program("pppd", "pppd(8): password password-string", follows="password"),
    Program(
        "openconnect",
        "openconnect(8): -C, --cookie; -p, --key-password; --token-secret",
        "-C --cookie -p --key-password --token-secret",
        valued="ucksFimgPQUVxX",
        plain="--token-mode",
    ),
    Program("xfreerdp xfreerdp3 wlfreerdp sdl-freerdp", "xfreerdp(1): /p:<password>, /gp:, /pth:", "/p /gp /pth -p"),
    Program("openvpn", "openvpn(8): --auth-user-pass and --askpass name files", plain="--auth-user-pass --askpass"),
    Program("rdesktop", "rdesktop(1): -p <password>", "-p", valued="udsSckgtnaxrTNXR"),
    Program("vncviewer xtightvncviewer", "vncviewer(1): -passwd password-file", plain="-passwd"),
    Program("x11vnc", "x11vnc(1): -passwd string, -viewpasswd string", "-passwd -viewpasswd"),
    Program("vmrun", "vmrun reference: -p, -gp, -vp", "-p -gp -vp"),
    Program("esxcli vicfg-user", "ESXCLI: -p, --password", "-p --password"),
    Program("xe", "xe CLI: -pw password", "-pw"),
    Program("virsh", "virsh(1): set-user-password domain user password", after="set-user-password", positional=(3,)),
    Program(
        "qemu-img qemu-system-x86_64 qemu-system-aarch64 qemu-kvm kvm",
        "qemu(1): -object secret,id=id,data=string",
        "-object; --object;",
    ),
    Program("iscsiadm", "iscsiadm(8): -n name -v value", "-v --value", valued="nmpTIorL", given="password"),
    Program(
        "grafana-cli grafana",
        "grafana cli admin reset-admin-password <new password>",
        after="reset-admin-password",
        positional=(1,),
    ),
    Program("splunk", "Splunk CLI: -auth username:password", "-auth: -password"),
    Program("elasticsearch-users", "elasticsearch-users reference: -p <password>", "-p"),
    Program("pcs", "pcs(8): host auth -u username -p password", "-p", valued="u"),
    Program("salt salt-call", "salt(1): --password", "--password"),
    Program("knife", "knife options: -P, --ssh-password", "-P --ssh-password --connection-password --winrm-password"),
    Program("steamcmd", "SteamCMD: +login username password", after="+login", positional=(2, 3)),
    Program("hydra medusa ncrack", "hydra(1): -p PASS", "-p", valued="lLPCeotTwWsMmx"),
    Program("crackmapexec cme nxc netexec", "NetExec documentation: -p PASSWORD, -H HASH", "-p -H", valued="udtMx"),
    Program(
        "psexec.py wmiexec.py smbexec.py atexec.py dcomexec.py secretsdump.py mssqlclient.py smbclient.py "
        "GetUserSPNs.py impacket-psexec impacket-wmiexec impacket-smbexec impacket-atexec impacket-secretsdump "
        "impacket-mssqlclient",
        "Impacket examples: [[domain/]username[:password]@]<target>, -hashes LMHASH:NTHASH",
        "-hashes -aesKey",
        positional=(1,),
        positional_form="&",
    ),
    Program("evil-winrm", "evil-winrm --help: -p, --password; -H, --hash", "-p --password -H --hash", valued="iuPcke"),
    # Windows
    Program("psexec psexec64", "PsExec documentation: -p psswd", "-p", valued="unriwa"),
    Program("schtasks", "schtasks reference: /rp, /p password", "/rp /RP /p /P"),
    Program(
        "net net1",
        "net user username [password] /option; that of Samba, net(8), has subcommands there",
        after="user USER",
        positional=(2,),
        valued="SIpWnsldt",
        unless="add ADD delete DELETE info INFO rename RENAME",
        has_slash_options=True,
    ),
    Program(
        "net net1",
        r"net use [device] \\computer\share [password]",
        after="use USE",
        positional=(2, 3),
        positional_form="\\",
        has_slash_options=True,
    ),
    # macOS
    Program(
        "security",
        "security(1): -p password of a keychain, -P passphrase, -k password, -w password",
        "-p -P -k -w",
        after="create-keychain unlock-keychain set-keychain-password add-generic-password add-internet-password import "
        "export set-key-partition-list set-generic-password-partition-list",
    ),
    Program("security", "security(1): set-keychain-password -o oldPassword", "-o", after="set-keychain-password"),
    Program(
        "dscl",
        "dscl(1): -passwd path [new_password | old_password new_password]",
        "-passwd!",
        after="-passwd passwd",
        positional=(2, 3),
    ),
    Program("dscl", "dscl(1): -P password of -u user", "-P", valued="u"),
)
"""What the manuals say. An entry for the same name adds to earlier ones."""

SHELLS: Final = words("sh bash dash ash zsh ksh mksh fish csh tcsh busybox rbash")
"""Shells, of which an argument can be a script."""
WRAPPERS: Final = SHELLS | words(
    """
    ansible at batch builtin bwrap catchsegv cgexec chpst chronic chroot chrt command crictl ctr daemonize cmd db2
    dbus-run-session doas docker dumb-init entr env envdir eval exec expect fakeroot faketime find firejail flock
    gdb gosu ionice kadmin kadmin.local kubectl lftp ltrace lxc lxc-attach machinectl mosh nerdctl nice nohup
    nsenter nsjail numactl oc parallel powershell pwsh perf pkexec podman prlimit proot proxychains proxychains4
    reflex rlwrap rpcclient run-parts runuser s6-setuidgid salt screen script setarch setpriv setsid setuidgid
    softlimit spawn srun ssh ssh-agent sshpass start-stop-daemon stdbuf strace su sudo systemd-cat systemd-inhibit
    systemd-run taskset time timeout tini tmux torsocks unbuffer unshare valgrind watch watchexec with-contenv xargs
    xterm xvfb-run
    """
)
"""Programs that run another one: what stands behind its name is read as its arguments, and text as a shell's."""
SCRIPT_READERS: Final = SHELLS | words("at batch parallel runuser screen script ssh su tmux watch xargs")
"""Those of which an argument that begins with `NAME=` is a script; for others it sets a variable."""
PASSWORD_READERS: Final = words("chpasswd cryptsetup kinit newusers passwd smbpasswd ssh-add sshpass su")
"""Programs that read a password from standard input, such as what `echo` writes; others do with an option for it."""
INTERPRETERS: Final = words("python python2 python3 perl ruby node php lua deno bun java")
"""Programs whose first argument can be one of `PROGRAMS`, but whose text is not a shell's."""
SEARCHERS: Final = words(
    """
    ack ag apropos awk egrep fgrep find gawk git-grep grep journalctl locate mawk nawk pgrep pkill plocate rg
    ripgrep test tr which whereis zgrep [
    """
)
"""Programs whose arguments are patterns: `password=` in one of these is what is searched for, not a secret."""
ALSO_NAMES: Final = words("[ CONNECT connect locate send set setenv spawn su test time tr user whereis which")
"""Those that are also common names of hosts, users and images, so that `ssh test …` runs none of them."""
MESSENGERS: Final = words("gh git glab hg hub logger mail mailx mutt notify-send svn wall xmessage zenity")
"""Programs that take prose, in which `token: …` is not a header."""
NAMERS: Final = words(
    "buildah crane crictl ctr docker keydb-cli nerdctl oras podman rclone redis-cli rsync scp skopeo valkey-cli"
)
"""Programs that take `name:tag` or `name:path`, in which `token:x` is not a setting."""
