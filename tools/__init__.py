"""The commands; each reads its arguments and calls one function of a room."""
