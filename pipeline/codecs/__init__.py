"""Codecs: TeacherOutput to the arrays of a shard and back. One file, or one folder, for each codec."""
