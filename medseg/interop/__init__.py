"""Files of other programs, read into records and written so that those programs accept them."""
