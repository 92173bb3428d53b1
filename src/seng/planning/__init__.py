"""What curvature costs, how it is kept, and what it would take on many ranks: from shapes alone."""
