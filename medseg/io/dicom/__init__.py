"""DICOM: series as images, objects that annotate them (SEG, RTSTRUCT), and predictions as SEG, RTSTRUCT and SR."""
