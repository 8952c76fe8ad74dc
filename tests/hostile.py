"""Names that are patterns, markup, options or SQL to somebody, and names to this project."""

NAMES = [
    "a[1]",
    "a*",
    "a?",
    "[!a]",
    "{b,c}",
    "~x",
    "it's",
    'say "hi"',
    "50%20",
    "two\nlines",
    "ü 🎉",
    "-x",
    "k=v",
    "x" * 80,
]
