"""The page of a batch: data model, thumbnails, charts, and the files that a browser opens."""
