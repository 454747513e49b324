"""Published embeddings: opened, checked against, written; nothing of a server or a file is taken on trust."""
