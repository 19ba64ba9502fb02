"""Rendered faces whose truth is known: our heads and ICT's, and what degrades their pictures."""
