"""Predictions and label maps as DICOM objects: SEG, RTSTRUCT, SR and secondary captures."""
