"""Services on top of the workflow: models behind a PACS."""
