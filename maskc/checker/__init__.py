"""Syntax tree to checked mask: names, types, statements, warnings."""
