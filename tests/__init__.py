"""Tests; a package, since textstat installs a module of the same name, which would hide a plain folder."""
