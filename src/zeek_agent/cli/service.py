"""The commands that install the agent or a gateway as a service."""

from __future__ import annotations

import click

from zeek_agent.cli.options import Given, settings_options
from zeek_agent.cli.programs import run_with_flags
from zeek_agent.errors import UsageError


@click.group("service")
def service_group() -> None:
    """Install the agent as a service of systemd, launchd or Windows, after an installation with pipx or uv."""


@service_group.command("install")
@click.option("--gateway", is_flag=True, help="The unit of `zeek-agent gateway`, not those of the agent.")
@click.option("--no-start", is_flag=True, help="Do not enable and start the service.")
def service_install(*, gateway: bool, no_start: bool) -> None:
    """Write the systemd units for this program, and a configuration if there is none; enable and start the service.

    On macOS, write the property list of a daemon for launchd; on Windows, create the service `ZeekAgent`. A gateway is
    not started until `gateway.servers` and `gateway.cluster` are set. Run it again after an upgrade. Distribution
    packages contain the units and do not need this.
    """
    from zeek_agent.service import managers

    for line in managers.of_this_system(gateway=gateway).install(start=not no_start):
        click.echo(line)


@service_group.command("uninstall")
@click.option("--gateway", is_flag=True, help="The unit of `zeek-agent gateway`, not those of the agent.")
@click.option("--purge", is_flag=True, help="Remove recorded events, logs and the configuration, too.")
def service_uninstall(*, gateway: bool, purge: bool) -> None:
    """Stop the service and remove what `service install` has installed. `service remove` is the same."""
    from zeek_agent.service import managers

    if gateway and purge:
        raise click.UsageError("--purge removes what an agent has; a gateway has nothing but the configuration")
    for line in managers.of_this_system(gateway=gateway).uninstall(purge=purge):
        click.echo(line)


service_group.add_command(service_uninstall, "remove")


@service_group.command("run", hidden=True)
@settings_options
def service_run(given: Given) -> int:
    """Run the agent as the Windows service; only the service control manager can do this."""
    from zeek_agent import platforms

    if platforms.HERE.key != "win32":
        raise UsageError("this is for Windows: `zeek-agent run` runs the agent")
    from zeek_agent.service import windows_service

    def work() -> int:
        config, _ = given.load()
        return run_with_flags(given, {} if config.log.file else {"log.file": windows_service.LOG_FILE})

    return windows_service.run(work)
