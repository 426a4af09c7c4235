"""The agent as a service of the host: its systemd unit, accounts and directories, and their installation."""
