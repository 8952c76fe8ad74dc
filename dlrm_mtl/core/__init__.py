"""The ground floor: errors, schemas, random numbers, processes. Imports nothing else of the package."""
