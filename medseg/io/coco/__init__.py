"""COCO's files of objects: read as label maps, and written of predictions."""
