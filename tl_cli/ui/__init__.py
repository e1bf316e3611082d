"""What a person sees: text, tables and screens in the terminal, pictures in files."""

import os

# Before matplotlib is imported, which stops at a name that it does not know, such as that of a notebook's own backend.
os.environ["MPLBACKEND"] = "Agg"
