"""Named edits of the input, evaluated in process or on Ray."""
