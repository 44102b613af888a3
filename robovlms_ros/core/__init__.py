"""Types, errors, configuration schema and file boundaries that every other package imports."""
