"""Reports for people to read: HTML pages, figures and summaries."""
