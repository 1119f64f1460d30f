"""The command line: one file for each command, which parses, calls the library and shows what came of it.

Nothing is computed here.
"""
