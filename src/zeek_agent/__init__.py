"""The Zeek Agent: a host's processes, sockets, users and files as an SQL database for Zeek."""

__version__ = "3.0.0"


def version_number() -> int:
    """The version as a number, like Zeek's: major·10⁸ + minor·10⁶ + patch·10⁴."""
    major, minor, patch = (int(part) for part in __version__.split(".")[:3])
    return major * 100_000_000 + minor * 1_000_000 + patch * 10_000
