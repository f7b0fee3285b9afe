"""Says what a study found: as a page, Markdown, LaTeX, CSV and a bundle to hand over."""
