"""Run records in, a table, plots and one HTML page out."""
