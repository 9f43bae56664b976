"""Reports: self-contained HTML pages, drawings, and summaries for the terminal."""
