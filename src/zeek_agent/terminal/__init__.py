"""What a person sees: output modes, the shell, status, doctor; and asking a running agent or this process."""
