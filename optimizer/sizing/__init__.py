"""Does a replica fit, how fast is it, and which configs are worth offering."""
