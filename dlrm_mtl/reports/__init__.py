"""Comparing runs and describing data sets: tables in the terminal, and self-contained HTML pages."""
