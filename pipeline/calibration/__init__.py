"""The codec's tables and steps for one teacher, and the measure of what a codec does to a gradient."""
