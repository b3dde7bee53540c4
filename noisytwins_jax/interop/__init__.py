"""Files and formats of other frameworks."""
