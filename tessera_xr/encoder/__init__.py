"""The TESSERA network and its weights."""
