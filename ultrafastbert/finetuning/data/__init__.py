"""GLUE and your own tables: reading, encoding, and the files of predictions."""
