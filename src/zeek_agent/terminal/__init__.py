"""Terminal output: output modes, the shell, status, doctor; requests to a running agent or to this process."""
