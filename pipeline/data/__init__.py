"""The files that stages share: arrays, tables, and how images were preprocessed."""
