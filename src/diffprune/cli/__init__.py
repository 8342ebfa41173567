"""The command line: the table of commands, the parser and the terminal output."""
