"""Codecs convert TeacherOutput to the arrays of a shard and back. Each codec is one file or one folder."""
