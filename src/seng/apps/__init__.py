"""Applications, each behind a command of the program ``seng``: they import the library, never the reverse."""
