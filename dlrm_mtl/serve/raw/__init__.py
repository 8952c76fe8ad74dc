"""Raw rows: the work of `prepare` on a column, done to a request, without DuckDB."""
