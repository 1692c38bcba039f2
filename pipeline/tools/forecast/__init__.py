"""`plan`: what a cache would take, measured on a small trial before anything is spent."""
