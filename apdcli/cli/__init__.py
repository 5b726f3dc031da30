"""The command line: options, one module per command, and the one map to exit statuses."""
