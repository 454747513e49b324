"""TESSERA's own training recipe, on the user's own d-pixels."""
