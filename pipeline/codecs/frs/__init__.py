"""The FRS-weighted codec: what the loss weighs by the map is stored with a precision that follows it."""
