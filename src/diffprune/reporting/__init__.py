"""The report page, plots, and the text of metric values."""
