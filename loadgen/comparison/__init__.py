"""Two runs against each other: ``sides`` (what is read of a run) -> ``gate`` (may they be compared?) ->
``blocks`` (what one round says) -> ``differences`` (over rounds and levels, in words). Pure."""
