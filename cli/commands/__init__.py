"""One command a file, each with the name `command` in it."""
