"""The control socket: requests and answers between commands and a running agent."""
