"""What everything else rests on: errors, schemas, random numbers, processes. Imports nothing of the package."""
