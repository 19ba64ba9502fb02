"""From views of a face to a normalized UV map, and to a set of them (Sec. 3.1)."""
