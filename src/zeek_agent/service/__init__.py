"""The agent as a service of the host: its systemd unit or launchd daemon, accounts and directories, installation."""
