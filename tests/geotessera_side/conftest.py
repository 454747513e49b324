"""What is here runs in geotessera's environment, by tests/test_geotessera.py: the usual run collects none of it."""

import importlib.util

if importlib.util.find_spec("geotessera") is None:
    collect_ignore_glob = ["*.py"]
