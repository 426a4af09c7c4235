"""The program of the process that watches files, which alone has CAP_SYS_ADMIN."""
