"""Tables that the operator declares in a TOML file: from a command's output, file columns, or a followed file."""
