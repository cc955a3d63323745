"""Files to volumes and label maps: scanning headers, grouping slices, decoding pixels, and the SEG and RTSTRUCT that annotate them."""
