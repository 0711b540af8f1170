"""What a batch leaves for people: manifest, contact sheet, page, summaries."""
