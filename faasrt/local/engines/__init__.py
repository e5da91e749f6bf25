"""The engines. An engine runs the programs of a language, or of a family of languages such as JavaScript."""
