"""DICOM: series as images, objects that annotate them, predictions as objects. Here lies what reading and writing share, and the choice of series."""
