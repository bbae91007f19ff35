"""Rating logs as found on disk, and what `prepare` makes of them."""
