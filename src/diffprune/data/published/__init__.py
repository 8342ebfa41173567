"""Published data sets: archives read as streams and written as images."""
