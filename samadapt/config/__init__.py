"""The configuration of a run: its schema, and how a recipe and a command line become one."""
