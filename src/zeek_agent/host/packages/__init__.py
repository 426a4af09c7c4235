"""Readers of the databases and metadata of installed packages, without the programs and libraries that write them."""
